"""How long a pipeline's schedules take in simulation, each against 1f1b."""

from collections.abc import Mapping
from typing import Any

from splitjax.parallel.schedule import schedule
from splitjax.parallel.timeline import simulate
from splitjax.train.timing import Part, Row, Timed

# Stages and micro-batches.
SIZES = ((2, 4), (4, 8), (4, 16), (8, 16), (8, 32))
KINDS = ("gpipe", "shifted")
REFERENCE = "1f1b"


def schedules(_: Timed) -> list[Row]:
    """Makespans, shares of the time in which stages wait, micro-batches that are held.

    Nothing is timed: a forward pass and a recomputation take 1, a backward pass takes
    2, and links nothing. Every stage recomputes, but for the last one of the shifted
    critical path. `gpipe` is as long as `1f1b`, which holds less.
    """
    made: list[Row] = []
    for stages, micro in SIZES:
        times = {
            kind: simulate(schedule(stages, micro, kind))
            for kind in (REFERENCE, *KINDS)
        }
        size = f"{stages} stages, {micro} micro-batches"
        spans = {kind: each.makespan for kind, each in times.items()}
        made += _rows(size, spans, "makespan", "units")
        idle = {kind: 100 * each.idle_fraction for kind, each in times.items()}
        made += _rows(size, idle, "idle", "%")
        held = {kind: sum(each.in_flight) for kind, each in times.items()}
        made += _rows(size, held, "in flight", "in all stages")
    return made


def _rows(size: str, found: Mapping[str, Any], what: str, unit: str) -> list[Row]:
    against = found[REFERENCE]
    return [
        {
            "name": f"{size}, {kind}: {what}",
            "value": float(found[kind]),
            "unit": unit,
            "reference": f"{REFERENCE}, {float(against):.3g}",
            "ratio": float(found[kind] / against),
            "bound": None,
        }
        for kind in KINDS
    ]


# By the name that --only chooses.
PARTS: dict[str, Part] = {"pipeline/schedules": schedules}
