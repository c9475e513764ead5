"""The mains with an image config: two processes compute what one does."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from splitjax.storage import log
from splitjax.train import loop
from splitjax.train.classify import Classify

ROOT = pathlib.Path(__file__).parents[2]
OPTIONS = dict(
    task="digits",
    model="cnn_norm",
    after=("block1",),
    forward="c3(2) + quantize(8)",
    backward="quantize(8, rounding='stochastic')",
    batch_size=8,
    micro=2,
    limit=37,  # the last step has one picture, and one half without any
    eval_limit=20,
    epochs=1,
    pad=1,
    precision="mixed",
    recompute="full",
)
CONFIG = f"""
from splitjax.train.classify import Classify


def get_config():
    return Classify(**{OPTIONS!r})
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    (tmp_path / "mine.py").write_text(CONFIG)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def call(name, *arguments):
        command = [sys.executable, "-m", f"experiments.{name}", "--config=mine.py"]
        kwargs = dict(cwd=tmp_path, env=environment, capture_output=True, text=True)
        done = subprocess.run([*command, *arguments], check=False, **kwargs)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("finetune", "--config.mode=processes")
    folder = tmp_path / "runs" / "mine" / "split_seed_0"
    both = json.loads((folder / "summary.json").read_text())
    one = loop.train(Classify(**OPTIONS), 0, tmp_path / "one", progress=False)
    alone, apart = (
        [line["loss"] for line in log.read(f) if "loss" in line]
        for f in (tmp_path / "one", folder)
    )
    np.testing.assert_allclose(apart, alone, rtol=1e-6)
    assert len(alone) == 5 and both["scores"] == one["scores"]
    image = np.stack([np.full((8, 8, 1), level, np.uint8) for level in (0, 99, 200)])
    np.savez(tmp_path / "new.npz", image=image)
    call("finetune", "--workdir=alone")  # both halves here: predict needs no cloud
    lines = call("predict", "--workdir=alone", "--texts=new.npz").splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["text"] for line in found] == [0, 1, 2]
    assert {len(line["prediction"]) for line in found} == {10}
