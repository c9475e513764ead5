"""The main that makes certificates, as a user calls it."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def call(folder, *arguments):
    command = [sys.executable, "-m", "experiments.certificates", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    kwargs = dict(cwd=folder, env=environment, capture_output=True, text=True)
    return subprocess.run(command, check=False, **kwargs)


def test_it_says_what_goes_where_and_overwrites_nothing(tmp_path):
    wish = ["--out=keys", "--hosts=cloud.lan,10.0.0.7", "--edges=2", "--days=1"]
    done = call(tmp_path, *wish)
    assert done.returncode == 0, done.stderr
    title, *lines = done.stdout.splitlines()
    assert title == "Valid days: 1; hosts of the cloud: cloud.lan, 10.0.0.7"
    assert [line.split(":")[0].strip() for line in lines] == [
        *("keys/cloud", "keys/edge_0", "keys/edge_1", "keys/authority")
    ]
    assert "copy to the host of edge 1 (ca.pem, edge.key, edge.pem, token)" in lines[2]
    assert "copy nowhere" in lines[3]
    token = (tmp_path / "keys" / "edge_0" / "token").read_text().strip()
    assert token not in done.stdout + done.stderr

    again = call(tmp_path, *wish)
    assert again.returncode != 0 and not again.stdout
    assert again.stderr.splitlines()[-1] == (
        "no certificates were made: keys: exists already; name a new folder"
    )
    assert (tmp_path / "keys" / "edge_0" / "token").read_text().strip() == token
