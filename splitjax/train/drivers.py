"""Which driver a run has: both halves in this process, or the edge's with a cloud."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from splitjax.runtime.channel import Channel
from splitjax.runtime.edge import Edge
from splitjax.runtime.local import Local
from splitjax.runtime.meter import Meter
from splitjax.storage.checkpoint import CheckpointError, Checkpoints
from splitjax.train.experiment import Experiment, Parts
from splitjax.train.serve import agreed, run_key
from splitjax.train.spending import own_key

BOTH, EDGE = "both halves", "the edge's half"  # what a checkpoint has of a run


@dataclasses.dataclass(frozen=True)
class ToCloud:
    """How a run reaches a cloud that has its other half.

    Attributes:
      dial: opens a channel to it.
      slot: of this edge.
      deadline_seconds: see `Edge`.
      patience_seconds: see `Edge`.
    """

    dial: Callable[[], Channel]
    slot: int = 0
    deadline_seconds: float = 120.0
    patience_seconds: float = 300.0


def saved_tick(checkpoints: Checkpoints, saved: int, cloud: ToCloud | None) -> int:
    """Where a checkpoint is, which must have the halves that we run."""
    facts = checkpoints.facts(saved)
    if facts.get("halves", BOTH) != (EDGE if cloud else BOTH):
        have, want = (BOTH, "without") if cloud else (EDGE, "with")
        raise CheckpointError(
            f"{checkpoints.folder} has {have} of a run: go on {want} a cloud "
            "(--address and --certificates say which), or in another --workdir"
        )
    return facts["tick"]


def make_driver(
    experiment: Experiment,
    seed: int,
    parts: Parts,
    meter: Meter,
    cloud: ToCloud | None,
    folder: pathlib.Path | None = None,
) -> Local | Edge:
    """What runs the algorithm: both halves here, or the edge's alone.

    Args:
      experiment: what to run.
      seed: of the run.
      parts: see `Experiment.parts`; with specs for weights where there is a cloud.
      meter: counts what is sent.
      cloud: where the other half is.
      folder: of the run, where an edge keeps the key of its noise, and both halves
        what codecs remember.
    """
    rows: dict[str, Any] = {
        "examples": parts.examples,
        "folder": folder,
        "mapped": folder is not None and getattr(experiment, "map_rows", False),
    }
    key, jit = run_key(seed), not experiment.debug
    if cloud is None:
        algorithm = experiment.cloud_algorithm(parts)
        return Local(algorithm, key, meter=meter, jit=jit, **rows)
    if experiment.mode == "unsplit":
        raise ValueError("mode='unsplit' has no halves: leave the cloud away")
    if folder is not None:
        key = own_key(parts, key, folder)
    return Edge(
        parts.algorithm,
        key,
        cloud.dial,
        micro=experiment.micro,
        slot=cloud.slot,
        config=agreed(experiment, seed),
        facts=parts.facts,
        owners=parts.split.cut.owners,
        meter=meter,
        deadline_seconds=cloud.deadline_seconds,
        patience_seconds=cloud.patience_seconds,
        jit=jit,
        **rows,
    )


def halves_of(driver: Local | Edge) -> str:
    """What a checkpoint of a driver's state has of the run.

    Example:
      >>> halves_of.__name__
      'halves_of'
    """
    return EDGE if isinstance(driver, Edge) else BOTH
