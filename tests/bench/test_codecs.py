import json
import os
import pathlib
import subprocess
import sys

from splitjax import codecs
from splitjax.bench import codecs as bench_codecs
from splitjax.train import timing

ROOT = pathlib.Path(__file__).parents[2]
X = bench_codecs.activations((2, 4, 16))


def timed(steps):
    """Times that can be told beforehand: the n-th step takes n seconds."""
    for step in steps.values():
        step()
    return {name: [1.0 + n] * 3 for n, name in enumerate(steps)}


def test_rows_hold_times_against_a_copy_bytes_and_the_error():
    case = bench_codecs.Case(codecs.quantize(8), 2.5)
    encode, decode, size, error = bench_codecs.measure(case, X, timed)
    assert encode["reference"] == "memcpy" and encode["unit"] == "s"
    assert (encode["ratio"], encode["bound"]) == (2.0, 2.5)
    assert (decode["ratio"], decode["bound"]) == (3.0, 2.5)
    assert (size["value"], size["unit"]) == (2 * 4 * (16 + 4), "B")
    assert size["ratio"] == size["value"] / X.nbytes
    assert 0.001 < error["value"] < 0.02


def test_a_codec_within_another_is_its_reference():
    inner = codecs.quantize(2, power_of_two=True)
    case = bench_codecs.Case(codecs.delta(inner), 3.0, inner=inner)
    made = bench_codecs.measure(case, X, timed)
    found = [(row["reference"], row["ratio"], row["bound"]) for row in made[:4]]
    assert found == [
        ("memcpy", 2.0, None),
        ("memcpy", 3.0, None),
        ("inner encode", 2 / 4, 3.0),
        ("inner decode", 3 / 5, 3.0),
    ]
    # The second message: codes, steps and lows, ids, a bit each; no row that is new.
    assert made[4]["value"] < 2 * 4 * (4 + 3) + 2 * 8 < X.nbytes


def test_a_peer_is_compared_by_its_figures():
    peer = bench_codecs.Peer("peer", codecs.cast("f16"), (4, 8), {"both": 6.0}, 128)
    both, size = bench_codecs.against(peer, timed)
    assert (both["value"], both["ratio"], both["bound"]) == (3.0, 0.5, 1.0)
    assert (size["value"], size["ratio"], size["bound"]) == (64, 0.5, None)


def test_every_bound_of_the_issue_is_there():
    bounds = {case.codec.name: case.bound for case in bench_codecs.cases()}
    assert bounds["quantize(8,token,affine,nearest)"] == 3.0
    assert bounds["quantize(4,token,affine,nearest)"] == 2.5
    assert bounds["quantize(8,token,affine,stochastic)"] == 3.0
    assert bounds["sign+pack_signs"] == 2.0 and bounds["top_k(0.01,token)"] == 15.0


def test_small_numbers_keep_their_digits(tmp_path):
    row = {"name": "a", "reference": "b", "ratio": 1.0, "bound": None}
    made = [{**row, "value": v, "unit": u} for v, u in ((2e-5, "s"), (0.0123, "L2"))]
    table = timing.write(made, tmp_path / "rows.json")
    assert "0.02 ms" in table and "0.0123 L2" in table


def test_the_main_writes_its_rows(tmp_path):
    command = [sys.executable, "-m", "experiments.bench_codecs", "--rounds=1"]
    command += ["--shape=2,3,16", r"--only=cast\(f16", "--nopeers", "--workdir=w"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    kwargs = dict(cwd=tmp_path, env=environment, capture_output=True, text=True)
    done = subprocess.run(command, check=False, **kwargs)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "w" / "bench_codecs.json").read_text())["rows"]
    assert [set(row) for row in rows] == [
        {"name", "value", "unit", "reference", "ratio", "bound"}
    ] * 4
    assert rows[2]["value"] == 2 * 3 * 16 * 2 and "cast(f16), error" in done.stdout
