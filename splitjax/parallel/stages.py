"""The stages of a pipeline, planned from what its blocks cost."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

from splitjax.parallel.border import Border
from splitjax.parallel.cost import Block
from splitjax.parallel.machine import Machine, seconds
from splitjax.parallel.mesh import text_of
from splitjax.parallel.moves import refine
from splitjax.parallel.partition import check_cuts, groups, min_max
from splitjax.parallel.recompute import (
    counts,
    fewest_recomputed,
    stage_bytes,
    stage_ratios,
)
from splitjax.parallel.schedule import schedule
from splitjax.parallel.timeline import Timeline, simulate


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage of a plan; seconds are of one micro-batch, bytes of one device.

    Attributes:
      first: the name of its first block.
      last: and of its last.
      blocks: how many.
      recomputed: how many of the first are computed again.
      forward_seconds: predicted.
      recompute_seconds: predicted.
      backward_seconds: predicted, without the recomputation.
      parameter_bytes: its own and those it borrows, in all their copies.
      kept_bytes: what its micro-batches in flight keep at most.
      in_flight: how many those are.
    """

    first: str
    last: str
    blocks: int
    recomputed: int
    forward_seconds: Fraction
    recompute_seconds: Fraction
    backward_seconds: Fraction
    parameter_bytes: int
    kept_bytes: int
    in_flight: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `staged` found.

    Attributes:
      data: devices over which rows are parted.
      pipe: stages.
      tensor: devices over which the blocks' matrices are parted.
      cuts: numbers of blocks before each cut.
      kind: of the schedule.
      micro: micro-batches in a step.
      stages: of the pipeline.
      timeline: of one step, without the sum of gradients over `data`.
      seconds: of one step, predicted.
    """

    data: int
    pipe: int
    tensor: int
    cuts: tuple[int, ...]
    kind: str
    micro: int
    stages: tuple[StagePlan, ...]
    timeline: Timeline
    seconds: Fraction

    @property
    def mesh(self) -> str:
        """The mesh as text, "data=2,pipe=2,tensor=2"."""
        return text_of({"data": self.data, "pipe": self.pipe, "tensor": self.tensor})

    @property
    def recompute(self) -> tuple[int, ...]:
        """Of each stage, how many of its first blocks are computed again."""
        return tuple(stage.recomputed for stage in self.stages)


def staged(
    blocks: Sequence[Block],
    borders: Sequence[Border],
    machine: Machine,
    *,
    micro: int,
    pipe: int,
    data: int = 1,
    tensor: int = 1,
    kind: str = "1f1b",
    first_ratio: float | None = None,
    cuts: Sequence[int] | None = None,
) -> Plan:
    """Plans the stages of a pipeline of a given shape.

    The cuts are those of least dearest stage that fit the memory, then moved while the
    simulated step gets shorter. Assumed is that `data` and `tensor` part all operations
    evenly, that a block of a parted matrix sums its input's bytes once forward and once
    backward (a ring: 2 (t - 1) / t of them cross each link), that what a vjp keeps is
    parted by `data` only, that a stage sends all that its last block hands on, and that
    gradients are summed over `data` when all else is done.

    Args:
      blocks: costs, for one micro-batch of the whole batch.
      borders: between them.
      machine: of the devices.
      micro: micro-batches in a step.
      pipe: stages.
      data: see `Plan`.
      tensor: see `Plan`.
      kind: of the schedule.
      first_ratio: of blocks to recompute in the first stage, the others' after
        `recompute.stage_ratios`; None: as few as fit the memory, or, for the schedules
        that order recomputations, all.
      cuts: one's own; None: found.

    Raises:
      ValueError: when nothing fits, and as `check_cuts`, `min_max` and `schedule` do.

    Example:
      >>> blocks = [Block(f"b{i}", 1.0, 2.0, 4, 4, 4) for i in range(6)]
      >>> borders = [Border(f"b{i}", 4, 4, (), ()) for i in range(5)]
      >>> made = staged(blocks, borders, Machine(1.0), micro=4, pipe=3)
      >>> made.cuts, made.seconds
      ((2, 4), Fraction(36, 1))

    Reference:
      Z. Lai et al., Merak, 2022, arXiv:2206.04959.

    Differs:
      Merak simulates 1f1b with 2 p micro-batches and no communication to judge moves;
      here it is the schedule, the number and the links that are planned for.
    """
    # How many micro-batches are in flight depends on the order alone.
    in_flight = simulate(schedule(pipe, micro, kind)).in_flight
    shape = (micro, pipe, data, tensor, kind)
    task = _Task(blocks, borders, machine, *shape, first_ratio, in_flight)
    legal = [number for number, border in enumerate(borders, 1) if border.legal]
    if cuts is not None:
        check_cuts(cuts, len(blocks), stages=pipe, legal=legal)
        return task.at(tuple(cuts))
    costs = [task.forward(block) + task.backward(block) for block in blocks]
    bounded = machine.memory_bytes is not None
    start = min_max(costs, pipe, legal=legal, fits=task.fits if bounded else None)
    return task.at(refine(start, legal, lambda new: task.at(new).seconds))


@dataclasses.dataclass(frozen=True)
class _Task:
    blocks: Sequence[Block]
    borders: Sequence[Border]
    machine: Machine
    micro: int
    pipe: int
    data: int
    tensor: int
    kind: str
    first_ratio: float | None
    in_flight: tuple[int, ...]

    def at(self, cuts: tuple[int, ...]) -> Plan:
        """The plan with these cuts."""
        spans = groups(cuts, len(self.blocks))
        stages = tuple(self._stage(s, span) for s, span in enumerate(spans))
        times = simulate(
            schedule(
                self.pipe,
                self.micro,
                self.kind,
                recompute=[stage.recomputed > 0 for stage in stages],
            ),
            forward=[stage.forward_seconds for stage in stages],
            recompute=[stage.recompute_seconds for stage in stages],
            backward=[stage.backward_seconds for stage in stages],
            communication=[
                self._sent(Fraction(self.borders[cut - 1].carry_bytes, self.data))
                for cut in cuts
            ],
        )
        own = max(sum(self.blocks[i].parameter_bytes for i in span) for span in spans)
        summed = self._sent(_ring(self.data) * own / self.tensor)
        shape = (self.data, self.pipe, self.tensor, cuts, self.kind, self.micro)
        return Plan(*shape, stages, times, times.makespan + summed)

    def fits(self, stage: int, first: int, end: int) -> bool:
        """Whether a stage's device has room for these blocks."""
        try:
            self._stage(stage, range(first, end))
        except ValueError:
            return False
        return True

    def _stage(self, stage: int, span: range) -> StagePlan:
        own = [self.blocks[i] for i in span]
        in_flight = self.in_flight[stage]
        weights = self._parameter_bytes(own)
        again = self._recomputed(stage, own, in_flight, weights)
        inputs, kept = self._kept(own)
        held = stage_bytes(inputs, kept, again, in_flight)
        room = self.machine.memory_bytes
        if room is not None and weights + held > room:
            raise ValueError(
                f"stage {stage} ({own[0].name} to {own[-1].name}) needs "
                f"{weights + held} bytes, and a device has {room}"
            )
        forward = [self.forward(block) for block in own]
        backward = [self.backward(block) for block in own]
        backward.append(self._added(self._lent_bytes(own)))
        return StagePlan(
            own[0].name,
            own[-1].name,
            len(own),
            again,
            sum(forward, Fraction(0)),
            sum(forward[:again], Fraction(0)),
            sum(backward, Fraction(0)),
            weights,
            held,
            in_flight,
        )

    def _recomputed(
        self, stage: int, own: list[Block], in_flight: int, weights: int
    ) -> int:
        ordered = self.kind in ("early", "last", "shifted")
        if self.kind in ("last", "shifted") and stage == self.pipe - 1:
            return 0
        if self.first_ratio is not None:
            ratios = stage_ratios(
                self.first_ratio, self.pipe, shifted=self.kind == "shifted"
            )
            return counts(ratios[stage : stage + 1], [len(own)])[0]
        if self.machine.memory_bytes is None or ordered:
            return len(own) if ordered else 0
        room = max(0, self.machine.memory_bytes - weights)
        return fewest_recomputed(*self._kept(own), in_flight, room)

    def _kept(self, own: list[Block]) -> tuple[list[int], list[int]]:
        return (
            [-(-block.input_bytes // self.data) for block in own],
            [-(-block.residual_bytes // self.data) for block in own],
        )

    def _parameter_bytes(self, own: list[Block]) -> int:
        whole = sum(block.parameter_bytes for block in own)
        # A borrowed one is there twice: itself and its gradient.
        copies = self.machine.copies * whole + 2 * self._lent_bytes(own)
        return -(-copies // self.tensor)

    def _lent_bytes(self, own: list[Block]) -> int:
        there = {block.name for block in own}
        borrowed = {name for block in own for name in block.reads} - there
        return sum(b.parameter_bytes for b in self.blocks if b.name in borrowed)

    def forward(self, block: Block) -> Fraction:
        """Seconds of one micro-batch, predicted."""
        return self._computed(block.forward_flops) + self._summed(block)

    def backward(self, block: Block) -> Fraction:
        """Likewise, without recomputation and without borrowed parameters."""
        computed = self._computed(block.backward_flops) + self._summed(block)
        return computed + self._added(block.parameter_bytes)

    def _added(self, count: int) -> Fraction:
        part = Fraction(3 * count, self.tensor)
        return seconds(self.machine.stream_bytes_per_second, part)

    def _computed(self, flops: float) -> Fraction:
        part = Fraction(flops) / (self.data * self.tensor)
        return seconds(self.machine.flops_per_second, part)

    def _summed(self, block: Block) -> Fraction:
        return self._sent(_ring(self.tensor) * block.input_bytes / self.data)

    def _sent(self, count: float | Fraction) -> Fraction:
        return seconds(self.machine.link_bytes_per_second, count)


def _ring(devices: int) -> Fraction:
    """What each link of a ring carries of an array that is summed over devices."""
    return Fraction(2 * (devices - 1), devices)
