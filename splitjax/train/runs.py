"""One run of an experiment: opened where its folder has it, and scored."""

import contextlib
import dataclasses
import logging
import pathlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from splitjax.data.batches import model_inputs
from splitjax.runtime.edge import Edge
from splitjax.runtime.local import Local
from splitjax.runtime.meter import Meter
from splitjax.runtime.run_state import RunState
from splitjax.storage.checkpoint import CheckpointError, Checkpoints
from splitjax.storage.frames import Frames
from splitjax.storage.lock import exclusive
from splitjax.train.drivers import ToCloud, make_driver, saved_tick
from splitjax.train.experiment import Experiment, Parts

# Batches of an evaluation under way: one is computed while others cross a link.
AT_ONCE = 4


@dataclasses.dataclass
class Run:
    """One run of an experiment, as its folder has it.

    Attributes:
      parts: what the experiment built.
      driver: runs the algorithm.
      state: of edge and cloud.
      facts: what a summary needs: steps, tokens, seconds, scores, bytes.
      checkpoints: in the run's folder.
    """

    parts: Parts
    driver: Local | Edge
    state: RunState
    facts: dict[str, Any]
    checkpoints: Checkpoints


def open_run(
    experiment: Experiment,
    seed: int,
    folder: str | pathlib.Path,
    cloud: ToCloud | None = None,
) -> Run:
    """Builds a run, and brings it to where its last checkpoint left it, if any.

    Args:
      experiment: what to run.
      seed: see `train`.
      folder: the run's.
      cloud: where its other half is; None runs both here.

    Raises:
      ValueError: for options that make no sense, or a folder that holds another run.
      Refused, ConnectionError, Unauthenticated: see `Edge.start`.
    """
    experiment.validate()
    checkpoints = Checkpoints(folder, experiment.identity(seed))
    parts = experiment.parts(seed, weights=cloud is None)
    meter = Meter()
    driver = make_driver(experiment, seed, parts, meter, cloud, pathlib.Path(folder))
    try:
        return _begin(experiment, parts, driver, checkpoints, cloud)
    except BaseException:
        driver.close()  # else its slot at the cloud is in use until the lease is over
        raise


def _begin(
    experiment: Experiment,
    parts: Parts,
    driver: Local | Edge,
    checkpoints: Checkpoints,
    cloud: ToCloud | None,
) -> Run:
    first, *_ = next(iter(parts.train.epoch(0, micro=experiment.micro)))
    facts: dict[str, Any] = {"tokens": 0, "seconds": 0.0, "before": {}, "scores": []}
    saved = checkpoints.latest()
    tick = None if saved is None else saved_tick(checkpoints, saved, cloud)
    x = model_inputs(first)
    state = driver.start(parts.params, parts.state, x, tick=tick)
    if saved is not None:
        tree, facts = checkpoints.restore((state.edge, state.shared, state.slot))
        state = RunState(*tree, step=facts["step"], tick=facts["tick"])
        driver.meter.merge(facts["bytes"])
    if driver.remembers and getattr(experiment, "edge_dropout", False):
        if not getattr(experiment, "frozen_edge", False):
            logging.warning(
                "a codec remembers examples, and dropout at the edge changes them at "
                "each visit, so that nothing settles: take edge_dropout=False (it "
                "learns still) or frozen_edge=True"
            )
    if driver.remembers and experiment.epochs == 1:
        logging.warning(
            "a codec remembers examples, and in one epoch none comes again: each is "
            "sent whole. Train for more epochs, or take another codec"
        )
    if parts.send_once:
        driver.keep(Frames(checkpoints.folder / "frames", state.step))
    return Run(parts, driver, state, facts, checkpoints)


def open_trained(
    experiment: Experiment,
    seed: int,
    folder: str | pathlib.Path,
    cloud: ToCloud | None = None,
) -> Run:
    """A run that has a checkpoint; see `open_run`.

    Raises:
      CheckpointError: when the folder has none.
    """
    _check_there(folder)
    experiment.validate()
    checkpoints = Checkpoints(folder, experiment.identity(seed))
    if checkpoints.latest() is None:
        checkpoints.release()
        raise CheckpointError(f"{folder} holds no checkpoint: train first")
    return open_run(experiment, seed, folder, cloud)


@contextlib.contextmanager
def trained(
    experiment: Experiment,
    seed: int,
    folder: str | pathlib.Path,
    cloud: ToCloud | None = None,
) -> Iterator[Run]:
    """A run that has a checkpoint, held until the context ends; see `open_trained`.

    To open a run drops what came after its checkpoint (frames that were kept, rows of
    codecs), which is another process's where that is at work.

    Raises:
      InUse: when another process uses the folder.
    """
    _check_there(folder)
    with exclusive(folder):
        run = open_trained(experiment, seed, folder, cloud)
        with contextlib.closing(run.driver):
            yield run


def _check_there(folder: str | pathlib.Path) -> None:
    if not pathlib.Path(folder).is_dir():
        raise CheckpointError(f"{folder}: no such folder: train first")


def predict(run: Run, batches: Any) -> tuple[np.ndarray, np.ndarray]:
    """The model's outputs for some batches, through the cut, and what was wanted.

    Where the experiment has `Parts.rows`, what they make of both.
    """
    predicted, wanted = [], []
    given: deque = deque()

    def inputs():
        for [batch] in batches.epoch(0, shuffle=False):
            given.append(batch)
            yield model_inputs(batch)

    for out in run.driver.predict_each(run.state, inputs(), in_flight=AT_ONCE):
        batch = given.popleft()
        y = batch["y"]
        if run.parts.rows is not None:
            out, y = run.parts.rows(out, y)
        predicted.append(np.asarray(out)[: batch["n_valid"]])
        wanted.append(np.asarray(y)[: batch["n_valid"]])
    return np.concatenate(predicted), np.concatenate(wanted)


def evaluate(run: Run) -> dict[str, float]:
    """The scores of a run by data split, through the cut."""
    evals = run.parts.evals
    return {name: run.parts.score(*predict(run, evals[name])) for name in evals}
