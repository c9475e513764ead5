"""How long a schedule takes: when each stage works, and when it waits."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from splitjax.parallel.schedule import (
    BACKWARD,
    FORWARD,
    RECOMPUTE,
    WAIT,
    Lists,
    Op,
    needed,
    walk,
)

Number = int | float | Fraction


class Span(NamedTuple):
    """When a stage did an operation.

    Attributes:
      stage: its number.
      op: the operation.
      start: the time at which it began.
      end: and at which it was done.
    """

    stage: int
    op: Op
    start: Fraction
    end: Fraction


@dataclasses.dataclass(frozen=True)
class Timeline:
    """What `simulate` finds.

    Attributes:
      spans: of every operation, the waits (of no length) among them.
      makespan: from the first beginning to the last end.
      busy: time in which each stage computes.
      in_flight: of each stage, the most micro-batches whose forward pass was done and
        whose backward pass was not.
    """

    spans: tuple[Span, ...]
    makespan: Fraction
    busy: tuple[Fraction, ...]
    in_flight: tuple[int, ...]

    @property
    def idle(self) -> tuple[Fraction, ...]:
        """The part of the makespan in which each stage waits, 0 to 1."""
        return tuple(1 - busy / self.makespan for busy in self.busy)

    @property
    def idle_fraction(self) -> Fraction:
        """The mean of `idle` over the stages."""
        return sum(self.idle, Fraction(0)) / len(self.busy)


def simulate(
    lists: Lists,
    *,
    forward: Number | Sequence[Number] = 1,
    recompute: Number | Sequence[Number] = 1,
    backward: Number | Sequence[Number] = 2,
    communication: Number | Sequence[Number] = 0,
) -> Timeline:
    """Times a schedule, exactly: every operation begins as soon as it can.

    Args:
      lists: from `schedule`, or of your own.
      forward: what F takes, one number for all stages or one for each; any unit.
      recompute: the same of R.
      backward: of B.
      communication: between the end on one stage and the beginning on the next, either
        way; one number for all borders of two stages or one for each. It occupies no
        stage.

    Returns:
      Times as fractions, of floats too: nothing is rounded.

    Raises:
      ValueError: for costs that are negative, of no sum or of a wrong number, and as
        `walk` does.

    Example:
      >>> from splitjax.parallel.schedule import schedule
      >>> times = simulate(schedule(4, 8))
      >>> times.makespan, times.idle_fraction, times.in_flight
      (Fraction(44, 1), Fraction(3, 11), (4, 3, 2, 1))

    Reference: see `parallel.schedule`.

    Differs: a model of Merak's lists; its figures were measured on GPUs.
    """
    stages = len(lists)
    cost = {
        FORWARD: _each("forward", forward, stages),
        RECOMPUTE: _each("recompute", recompute, stages),
        BACKWARD: _each("backward", backward, stages),
        WAIT: [Fraction(0)] * stages,
    }
    delay = _each("communication", communication, stages - 1)
    ends: dict[tuple[int, Op], Fraction] = {}
    free, busy = [Fraction(0)] * stages, [Fraction(0)] * stages
    open_now, most, spans = [0] * stages, [0] * stages, []
    for stage, op in walk(lists):
        start = free[stage]
        if (need := needed(stage, op)) is not None:
            start = max(start, ends[need] + delay[min(stage, need[0])])
        free[stage] = ends[stage, op] = start + cost[op.kind][stage]
        busy[stage] += cost[op.kind][stage]
        open_now[stage] += {FORWARD: 1, BACKWARD: -1}.get(op.kind, 0)
        most[stage] = max(most[stage], open_now[stage])
        spans.append(Span(stage, op, start, free[stage]))
    if not max(free, default=Fraction(0)):
        raise ValueError("these operations take no time: give costs above 0")
    return Timeline(tuple(spans), max(free), tuple(busy), tuple(most))


def _each(name: str, given: Number | Sequence[Number], count: int) -> list[Fraction]:
    many = isinstance(given, Sequence)
    found = [Fraction(value) for value in (given if many else [given] * count)]
    if len(found) != count or any(value < 0 for value in found):
        raise ValueError(f"{name}={given}: expected {count} numbers, none below 0")
    return found
