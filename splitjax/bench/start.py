"""From nothing to the first step, and the memory of the processes."""

import json
import time
from collections.abc import Sequence
from typing import Any

from splitjax.bench.processes import Bench, Served
from splitjax.bench.steps import recipes
from splitjax.train.experiment import Experiment
from splitjax.train.processes import process

SECONDS = 5.0  # from the start to the first step
# What is left out of a time: what is done once, and kept.
LESS = {
    "all": (),
    "not compiling": ("compile",),
    "not compiling, its code fit before": ("compile", "fit"),
}


def start(b: Bench) -> list[dict[str, Any]]:
    """Rows of edges that begin at a cloud that serves: how soon, and how large.

    What is left out of a time is what either party did of it: both wait for each other.
    """
    made, peaks, rows = recipes(b.base), {}, []
    for name in ("float32", "this config"):
        with b.cloud(made[name]) as served:
            found = first_step(b, made[name], "edge", served)
        peaks[name] = found["peak_bytes"]
        last = list(LESS)[-1]
        for since in ("process", "hello"):
            for what, names in LESS.items():
                spans = [(b, e) for name, b, e in found["times"] if name in names]
                seconds = found["end"] - found[since]
                seconds -= covered(spans, found[since], found["end"])
                rows.append(
                    {
                        "name": f"{name}, {since} to first step, {what}",
                        "value": seconds,
                        "unit": "s",
                        "reference": f"{SECONDS:.0f} s",
                        "ratio": seconds / SECONDS,
                        "bound": 1.0 if what == last else None,
                    }
                )
    whole = first_step(b, made["un-split"], "alone", None)["peak_bytes"]
    return rows + [
        {
            "name": f"{name}, peak memory",
            "value": peak / 1e6,
            "unit": "MB",
            "reference": "un-split process",
            "ratio": peak / whole,
            "bound": None,
        }
        for name, peak in {
            "un-split process": whole,
            **{f"{name}, edge process": peak for name, peak in peaks.items()},
        }.items()
    ]


def first_step(
    b: Bench, experiment: Experiment, task: str, served: Served | None
) -> dict[str, Any]:
    """What `processes.first_step` finds in a new process, and when that began."""
    file = b.room / f"{task}_{len(list(b.room.iterdir()))}.json"
    more = {"file": str(file)}
    if served is not None:
        door = served.doors[""]
        more |= {"address": door.address, "certificates": door.certificates}
        served.times()
    begin = time.monotonic()
    with process(b.ask(task, experiment, **more), None) as child:
        if child.wait():
            raise RuntimeError(f"the process of task {task!r} failed; see above")
    found = json.loads(file.read_text())
    found["times"] += [] if served is None else served.times()
    return {"process": begin, **found}


def covered(spans: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """Seconds between two times that some span covers.

    Example:
      >>> covered([(0.0, 2.0), (1.0, 3.0), (9.0, 12.0)], 1.0, 10.0)
      3.0
    """
    total, reached = 0.0, begin
    for one, other in sorted(spans):
        other = min(other, end)
        total += max(0.0, other - max(one, reached))
        reached = max(reached, other)
    return total
