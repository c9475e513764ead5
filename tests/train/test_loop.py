"""How a run ends when it cannot go on; see test_resume for one that can."""

import numpy as np
import pytest

from splitjax.runtime import control
from splitjax.runtime.channel import Closed, pipe
from splitjax.runtime.control import Refused
from splitjax.runtime.local import Local
from splitjax.storage import log
from splitjax.storage.checkpoint import CheckpointError
from splitjax.storage.lock import InUse, exclusive
from splitjax.train import loop, runs
from splitjax.train.drivers import ToCloud

SECONDS = 20.0


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
    assert not (tmp_path / "config.json").exists()


def test_a_run_that_was_not_trained_asks_no_cloud(options, tmp_path):
    """To one at its beginning it would be a new edge, and set its slot back."""

    def dial():
        raise AssertionError("it has nothing to say to a cloud")

    with pytest.raises(CheckpointError, match="holds no checkpoint: train first"):
        runs.open_trained(options(), 0, tmp_path, ToCloud(dial))


def test_a_run_that_trains_is_not_scored_beside_it(options, tmp_path):
    """It would drop what the other has kept since its checkpoint."""
    with exclusive(tmp_path), pytest.raises(InUse, match="in use by process"):
        with runs.trained(options(), 0, tmp_path):
            pass


def test_a_run_that_cannot_begin_leaves_its_folder_free(options, tmp_path):
    with pytest.raises(ValueError, match="layers"):
        loop.train(options(layers=99), 0, tmp_path, progress=False)
    assert not (tmp_path / "config.json").exists()
    loop.train(options(steps=1, epochs=1), 0, tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="another config"):
        loop.train(options(layers=99), 0, tmp_path, progress=False)
    assert (tmp_path / "config.json").exists()


def test_an_edge_that_is_refused_hangs_up_and_leaves_its_folder_free(options, tmp_path):
    """So that the user may mend its config, and try again at once."""
    mine, theirs = pipe()
    theirs.send(control.write("welcome", run=1, tick=0, version=""))
    theirs.send(control.write("refused", code="config", text="rank: 4 at the edge"))
    with pytest.raises(Refused, match="rank: 4 at the edge"):
        loop.train(options(), 0, tmp_path, cloud=ToCloud(lambda: mine), progress=False)
    said = [control.read(theirs.receive(SECONDS)).kind for _ in range(2)]
    assert said == ["hello", "bye"]
    with pytest.raises(Closed):
        theirs.receive(SECONDS)
    assert not (tmp_path / "config.json").exists()
