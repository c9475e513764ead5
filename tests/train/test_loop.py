"""How a run ends when it cannot go on; see test_resume for one that can."""

import numpy as np
import pytest

from splitjax.runtime.local import Local
from splitjax.storage import log
from splitjax.storage.checkpoint import CheckpointError
from splitjax.train import loop, runs


def test_a_loss_that_is_not_finite_ends_the_run(options, tmp_path, monkeypatch):
    def step(self, run, batches, **kwargs):
        return run._replace(step=run.step + 1), {"loss": np.float32(np.nan)}

    monkeypatch.setattr(Local, "step", step)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        loop.train(options(), 0, tmp_path, progress=False)
    assert log.read(tmp_path) == []


def test_a_run_that_was_not_trained_is_told(options, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder: train first"):
        runs.open_trained(options(), 0, tmp_path / "gone")
    with pytest.raises(CheckpointError, match="holds no checkpoint: train first"):
        runs.open_trained(options(), 0, tmp_path)


def test_a_run_that_cannot_begin_leaves_its_folder_free(options, tmp_path):
    with pytest.raises(ValueError, match="layers"):
        loop.train(options(layers=99), 0, tmp_path, progress=False)
    assert not (tmp_path / "config.json").exists()
    loop.train(options(steps=1, epochs=1), 0, tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="another config"):
        loop.train(options(layers=99), 0, tmp_path, progress=False)
    assert (tmp_path / "config.json").exists()
