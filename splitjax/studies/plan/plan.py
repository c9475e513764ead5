"""Planning a model's pipeline, and measuring what the plan foretold."""

import dataclasses
import logging
from typing import Any

from splitjax.core.tree import Tree, flat
from splitjax.parallel.border import borders
from splitjax.parallel.cost import block_costs
from splitjax.parallel.machine import Machine
from splitjax.parallel.partition import chosen, even
from splitjax.parallel.plan import Candidate, best, candidates, check_shape
from splitjax.parallel.stages import Plan, staged
from splitjax.studies.plan.measure import Measured, matrix_rate, measured, stream_rate
from splitjax.studies.plan.options import Planning
from splitjax.studies.plan.subject import Subject, subject
from splitjax.train.timing import CLOCKS

GIGA = 1e9


@dataclasses.dataclass(frozen=True)
class Found:
    """What a run of `plan_and_measure` gives.

    Attributes:
      plan: the plan.
      even: the same with stages of as many blocks each; None where that does not fit.
      looked_at: the shapes of the mesh, where one was to be found.
      times: of the plan; None where nothing was measured.
      even_times: of the even one.
      machine: what was planned with.
      untimed: why nothing was measured though it was asked for; "" otherwise.
    """

    plan: Plan
    even: Plan | None
    looked_at: tuple[Candidate, ...]
    times: Measured | None
    even_times: Measured | None
    machine: Machine
    untimed: str = ""


def plan_and_measure(options: Planning, about: Subject | None = None) -> Found:
    """Plans, and where asked measures the plan and the even cut.

    A plan with an axis tensor is not measured: `Found.untimed` says so.

    Args:
      options: what to plan.
      about: the model; by default the one that `options.model` names.

    Raises:
      ValueError: for options that make no sense, or when nothing fits.
    """
    options.validate()
    about, machine = about or subject(options), machine_of(options)
    rows = _rows(about.x)
    axes: dict[str, Any] = options.shape() if options.mesh else {}
    if axes:
        check_shape(axes["data"], axes["tensor"], rows, options.widths)
    parts = about.stages, about.params, about.state, about.x
    blocks, between = block_costs(*parts), borders(*parts)
    how: dict[str, Any] = {
        "micro": options.micro,
        "kind": options.kind,
        "first_ratio": options.first_ratio if options.first_ratio >= 0 else None,
    }
    cuts, looked_at = None, ()
    if axes:
        if options.after:
            names = [block.name for block in blocks]
            legal = [i for i, border in enumerate(between, 1) if border.legal]
            cuts = chosen(options.after, names, legal=legal)
        made = staged(blocks, between, machine, **axes, **how, cuts=cuts)
    else:
        counts = {"devices": options.devices, "rows": rows, "widths": options.widths}
        looked_at = candidates(blocks, between, machine, **counts, **how)
        made = best(looked_at)
        axes.update(data=made.data, pipe=made.pipe, tensor=made.tensor)
    other = None
    try:
        cuts = even(len(blocks), made.pipe)
        other = staged(blocks, between, machine, **axes, **how, cuts=cuts)
    except ValueError as error:
        logging.info("no even cut: %s", error)
    times = even_times = None
    untimed = ""
    if options.measure and made.tensor > 1:
        untimed = f"the matrices of {made.mesh} are parted, which is not measured here"
    elif options.measure:
        watch: dict[str, Any] = {"rounds": options.rounds}
        watch["clock"] = CLOCKS[options.clock]
        times = measured(made, about, **watch)
        if other is not None and other.cuts != made.cuts:
            even_times = measured(other, about, **watch)
    return Found(made, other, looked_at, times, even_times, machine, untimed)


def machine_of(options: Planning) -> Machine:
    """What is known of a device; what is not told is timed on the first one here."""
    clock = CLOCKS[options.clock]
    return Machine(
        options.gflops * GIGA or matrix_rate(clock=clock),
        options.link_gb * GIGA or float("inf"),
        int(options.memory_gb * GIGA) or None,
        stream_bytes_per_second=options.stream_gb * GIGA or stream_rate(clock=clock),
    )


def _rows(x: Tree) -> int:
    return next(iter(flat(x).values())).shape[0]
