"""The demonstration of the hijacking attack, as a user calls it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from matplotlib import image

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_fsha_writes_its_report(tmp_path):
    command = [
        *(sys.executable, "-m", "experiments.fsha", f"--workdir={tmp_path}"),
        *("--config=configs/fsha_digits.py", "--config.steps=200"),
        *("--config.seeds=(0,)", "--config.arms=('honest','plain')"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    honest, plain = json.loads((tmp_path / "fsha.json").read_text())
    assert honest["value"] is None and honest["runs"][0]["flagged"] is None
    assert plain["value"] > 0 and plain["runs"][0]["flagged"] is not None
    assert (tmp_path / "table.md").read_text() in done.stdout
    assert image.imread(tmp_path / "fsha.png").std() > 0.01
