"""A plan as a table and as a picture, foretold and measured side by side."""

import dataclasses
import json
import math
import os
import pathlib
from typing import Any

from splitjax.parallel.schedule import BACKWARD, FORWARD, RECOMPUTE, WAIT
from splitjax.parallel.stages import Plan, StagePlan
from splitjax.parallel.timeline import Timeline
from splitjax.studies.plan.measure import Measured
from splitjax.studies.plan.plan import Found
from splitjax.train.report import markdown, versions

COLORS = {FORWARD: "tab:blue", RECOMPUTE: "tab:orange", BACKWARD: "tab:green"}


def rows(plan: Plan, times: Measured | None) -> list[dict[str, Any]]:
    """A row for each stage; seconds and bytes as plain numbers."""
    made = []
    for number, stage in enumerate(plan.stages):
        row = {
            name: float(value) if name.endswith("_seconds") else value
            for name, value in dataclasses.asdict(stage).items()
        }
        foretold = _total(stage)
        row |= {"stage": number, "foretold_seconds": foretold}
        row["idle"] = float(plan.timeline.idle[number])
        if times is not None:
            took = (times.forward[number], times.recompute[number])
            row |= {"measured_forward_seconds": took[0]}
            row |= {"measured_recompute_seconds": took[1]}
            row |= {"measured_backward_seconds": times.backward[number]}
            row["measured_seconds"] = sum(took) + times.backward[number]
        made.append(row)
    return made


def _total(stage: StagePlan) -> float:
    parts = (stage.forward_seconds, stage.recompute_seconds, stage.backward_seconds)
    return float(sum(parts))


def table(plan: Plan, times: Measured | None) -> str:
    """The stages of a plan; shares are of the sum over stages.

    Example:
      >>> from splitjax.parallel.border import Border
      >>> from splitjax.parallel.cost import Block
      >>> from splitjax.parallel.machine import Machine
      >>> from splitjax.parallel.stages import staged
      >>> blocks = [Block("a", 1.0, 2.0, 4, 4, 4), Block("b", 1.0, 2.0, 4, 4, 4)]
      >>> plan = staged(blocks, [Border("a", 4, 4, (), ())], Machine(1.0), micro=4,
      ...     pipe=2)
      >>> table(plan, None).splitlines()[2].split("|")[2].split()
      ['a']
    """
    made = rows(plan, times)
    head = ["stage", "blocks", "", "again", "in flight", "parameters", "kept"]
    head += ["foretold", "share"]
    foretold = sum(row["foretold_seconds"] for row in made)
    took = sum(row.get("measured_seconds", 0.0) for row in made)
    if times is not None:
        head += ["measured", "share", "forward", "recompute", "backward"]
    cells = []
    for row in made:
        span = (
            row["first"] if row["blocks"] == 1 else f"{row['first']} to {row['last']}"
        )
        line = [str(row["stage"]), span, str(row["blocks"]), str(row["recomputed"])]
        line += [str(row["in_flight"]), _bytes(row["parameter_bytes"])]
        line += [_bytes(row["kept_bytes"]), _ms(row["foretold_seconds"])]
        line += [f"{row['foretold_seconds'] / foretold:.1%}"]
        if times is not None:
            line += [_ms(row["measured_seconds"])]
            line += [f"{row['measured_seconds'] / took:.1%}"]
            line += [_ms(row[f"measured_{k}_seconds"]) for k in KINDS]
        cells.append(line)
    return markdown(head, cells)


KINDS = ("forward", "recompute", "backward")


def text(found: Found) -> str:
    """All that a run says: the shapes looked at, the stages, both makespans."""
    plan = found.plan
    parts = []
    if found.looked_at:
        cells = [
            (
                c.mesh,
                _ms(float(c.plan.seconds)) if c.plan else "-",
                c.reason or ("chosen" if c.plan is plan else ""),
            )
            for c in found.looked_at
        ]
        parts.append(markdown(("mesh", "a step", ""), cells))
    parts.append(
        f"{plan.mesh}, {plan.micro} micro-batches, {plan.kind}, "
        f"{found.machine.flops_per_second / 1e9:.1f} GFLOP/s and "
        f"{found.machine.stream_bytes_per_second / 1e9:.1f} GB/s a device"
    )
    parts.append(table(plan, found.times))
    head, cells = ["cut", "dearest stage", "makespan", "idle"], []
    if found.times is not None:
        head += ["measured: dearest stage", "makespan", "idle"]
        head += [f"a step on {cores()} cores"]
    for name, one, times in (
        ("planned", plan, found.times),
        ("even", found.even, found.even_times),
    ):
        if one is None or (found.times is not None and times is None):
            continue
        line = [name, _ms(max(map(_total, one.stages)))]
        line += [_ms(float(one.timeline.makespan)), _idle(one.timeline)]
        if times is not None:
            sums = zip(times.forward, times.recompute, times.backward, strict=True)
            line += [_ms(max(map(sum, sums))), _ms(float(times.timeline.makespan))]
            line += [_idle(times.timeline), _ms(times.whole)]
        cells.append(line)
    parts.append(markdown(head, cells))
    if found.untimed:
        parts.append(f"Not timed: {found.untimed}.")
    if found.times is not None:
        parts.append(
            "Measured makespans are the schedule's with each operation's time alone. "
            "Devices that share cores cannot show them: their whole step is the last "
            "column."
        )
    return "\n\n".join(parts)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def write(found: Found, path: pathlib.Path) -> None:
    """Writes what was found to a JSON file; what is not finite is null there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    both = (
        ("planned", found.plan, found.times),
        ("even", found.even, found.even_times),
    )
    made = {
        name: {
            "mesh": plan.mesh,
            "cuts": plan.cuts,
            "stages": rows(plan, times),
            "makespan": float(plan.timeline.makespan),
            "measured_makespan": times and float(times.timeline.makespan),
            "whole": times and times.whole,
            "loss": times and _finite(times.loss),
        }
        for name, plan, times in both
        if plan is not None
    }
    speeds = {k: _finite(v) for k, v in dataclasses.asdict(found.machine).items()}
    facts = {"machine": speeds, "cores": cores(), **versions()}
    path.write_text(json.dumps(made | facts, indent=2, allow_nan=False) + "\n")


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def plot(found: Found, path: pathlib.Path, title: str = "") -> None:
    """Draws the schedule to a PNG file; see `figure`."""
    figure(found, title).savefig(path, dpi=120)


def figure(found: Found, title: str = "") -> Any:
    """The schedule as a picture of matplotlib: foretold, and below as measured."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = [("foretold", found.plan.timeline)]
    if found.times is not None:
        shown.append(("measured stages", found.times.timeline))
    if found.even_times is not None:
        shown.append(("measured stages, even cut", found.even_times.timeline))
    made = Figure(figsize=(10, 1 + 2 * len(shown)), layout="constrained")
    axes = made.subplots(len(shown), 1, squeeze=False)[:, 0]
    for ax, (name, times) in zip(axes, shown, strict=True):
        _draw(ax, times)
        seconds = f"{float(times.makespan):.3g} s, idle {_idle(times)}"
        ax.set(title=f"{name}: {seconds}", ylabel="stage")
    axes[-1].set_xlabel("seconds")
    names = {FORWARD: "forward", RECOMPUTE: "recompute", BACKWARD: "backward"}
    handles = [Patch(color=COLORS[kind], label=name) for kind, name in names.items()]
    made.legend(handles=handles, loc="outside lower center", ncols=3)
    made.suptitle(title)
    return made


def _draw(ax: Any, times: Timeline) -> None:
    for span in times.spans:
        if span.op.kind == WAIT:
            continue
        start, end = float(span.start), float(span.end)
        ax.barh(
            span.stage,
            end - start,
            left=start,
            color=COLORS[span.op.kind],
            edgecolor="white",
            linewidth=0.5,
        )
    ax.set_yticks(range(len(times.busy)))
    ax.invert_yaxis()


def _idle(times: Timeline) -> str:
    return f"{float(times.idle_fraction):.1%}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"
