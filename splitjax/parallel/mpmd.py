"""A pipeline of many programs: each stage on its own devices, in a schedule's order."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from splitjax.core.codec import Link, chain
from splitjax.core.cut import Cut, check_reads, cut
from splitjax.core.split import Loss, Split
from splitjax.core.stage import Stage, join
from splitjax.core.tree import Tree
from splitjax.parallel.cost import pieces
from splitjax.parallel.partition import check_cuts, groups
from splitjax.parallel.place import Place, places
from splitjax.parallel.schedule import FORWARD, Op, schedule, walk
from splitjax.parallel.step import Step, programs
from splitjax.parallel.tie import untied, with_stand_ins


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """A model in stages on devices of their own; made by `mpmd`.

    A stage has one segment, or two where some of its blocks, the first, are
    recomputed. Parameters, state and gradients are tuples by segment.

    Attributes:
      split: all segments, in order; a segment that reads another one's parameters has
        a stage that stands for them.
      cut: the same cuts with each parameter once.
      parts: the numbers of each stage's segments.
      again: for each segment, whether it is computed again before its backward pass.
      places: where each stage lives.
      lists: what each stage does in a step; see `parallel.schedule`.
      lent: for each segment the names of the stages whose parameters it borrows.
    """

    split: Split
    cut: Cut
    parts: tuple[tuple[int, ...], ...]
    again: tuple[bool, ...]
    places: tuple[Place, ...]
    lists: tuple[tuple[Op, ...], ...]
    lent: tuple[tuple[str, ...], ...]

    @property
    def micro(self) -> int:
        """The number of micro-batches in a step."""
        return sum(op.kind == FORWARD for op in self.lists[0])

    def ordered(self, kind: str) -> "Pipeline":
        """The same stages and programs in another schedule.

        Raises:
          ValueError: see `parallel.schedule.schedule`, and for a kind whose last stage
            keeps what this one recomputes.
        """
        again = [self.again[own[0]] for own in self.parts]
        _check_last(kind, again[-1])
        lists = schedule(len(self.parts), self.micro, kind, recompute=again)
        new = dataclasses.replace(self, lists=lists)
        # The programs do not depend on the order: compiled ones are kept.
        new.__dict__["programs"] = self.programs
        return new

    def put(self, params: Tree, state: Tree) -> tuple[tuple, tuple]:
        """A model's parameters and state, by stage name, on the devices by segment."""
        made = []
        for tree, trained in ((params, True), (state, False)):
            parts: list[Tree] = list(self.cut.partition(tree))
            for place, own in zip(self.places, self.parts, strict=True):
                for index in own:
                    put = place.params if trained else place.whole
                    parts[index] = put(parts[index])
            made.append(tuple(parts))
        return made[0], made[1]

    def gathered(self, parts: Sequence[Tree]) -> Tree:
        """What lies by segment, by stage name on the first device."""
        first = self.places[0].devices[0]
        return self.cut.merge([jax.device_put(part, first) for part in parts])

    def owners(self) -> dict[str, int]:
        """In which segment each stage's parameters are; of a cut stack its last."""
        return {
            stage.name: index
            for index, segment in enumerate(self.cut.segments)
            for stage in segment.stages
        }

    def value_and_grad(
        self,
        params: tuple,
        state: tuple,
        batches: Sequence[tuple[Tree, Tree]],
        *,
        key: jax.Array | None = None,
        train: bool = True,
        weights: Sequence[float] | None = None,
    ) -> tuple[tuple[jax.Array, dict], tuple]:
        """Loss and gradient of one step, every stage in the order of its list.

        The key of micro-batch i is `fold(key, i)`, into which stages fold their names:
        no random number depends on where the model is cut.

        Args:
          params: by segment, as `put` gives them.
          state: likewise.
          batches: input and target of each micro-batch.
          key: of this step.
          train: whether dropout and the like are on.
          weights: of the micro-batches' losses; by default 1 / n each.

        Returns:
          `((loss, {"state", "metrics", "finite", "done", "in_flight"}), gradients by
          segment)`. "finite" has one bool for each stage, on its devices,
          and all are equal: whether the loss and every gradient of every stage are
          finite, so that each stage can skip the same step. "done" are the operations
          of each stage in the order in which they were started, and "in_flight" the
          most micro-batches for which it held something.

        Raises:
          ValueError: for a wrong number of micro-batches or weights, or rows that a
            mesh cannot part.
        """
        step = self._step(params, state, batches, key, train, weights)
        for stage, op in walk(self.lists):
            step.do(stage, op)
        return step.result()

    def seconds(
        self,
        params: tuple,
        state: tuple,
        batches: Sequence[tuple[Tree, Tree]],
        *,
        key: jax.Array | None = None,
        train: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> dict[tuple[int, str], tuple[float, ...]]:
        """What each operation takes when nothing else runs.

        Args:
          params: see `value_and_grad`, as the rest.
          state: see `value_and_grad`.
          batches: see `value_and_grad`.
          key: see `value_and_grad`.
          train: see `value_and_grad`.
          clock: in seconds.

        Returns:
          By stage and kind of operation, a number for each micro-batch. The first ones
          of a new pipeline compile. What arrives from another stage is counted.
        """
        step = self._step(params, state, batches, key, train, None)
        took: dict[tuple[int, str], tuple[float, ...]] = {}
        for stage, op in walk(self.lists):
            step.block()
            start = clock()
            step.do(stage, op)
            step.block()
            place = stage, op.kind
            took[place] = (*took.get(place, ()), clock() - start)
        return took

    def _step(self, params, state, batches, key, train, weights) -> Step:
        n = self.micro
        given = [1 / n] * n if weights is None else list(weights)
        if len(batches) != n or len(given) != n:
            raise ValueError(
                f"this schedule has {n} micro-batches: {len(batches)} batches and "
                f"{len(given)} weights"
            )
        return Step(self, params, state, batches, key, train, given)

    @functools.cached_property
    def programs(self) -> tuple[dict[str, Any], ...]:
        """Of each stage "F", "R" and "B", jitted."""
        return tuple(programs(self.split, own, self.again) for own in self.parts)


def mpmd(
    stages: Sequence[Stage],
    loss: Loss,
    *,
    cuts: Sequence[int],
    homes: Sequence[jax.Device | Mesh | Place],
    micro: int,
    kind: str = "1f1b",
    recompute: Sequence[int] | None = None,
) -> Pipeline:
    """Makes a pipeline whose stages are programs of their own.

    All devices are of this process: `parallel.spmd` is for a job of several ones.
    Stages may be unlike; a parameter that several read (a tied embedding) lives with
    its owner, is copied to the readers at each step, and gets the sum of all gradients.

    Args:
      stages: the model.
      loss: `(y, target) -> (scalar, metrics)`, of one micro-batch.
      cuts: numbers of blocks before each cut, as `parallel.partition` gives them.
      homes: a device, a mesh or a `Place` for each stage; none is shared.
      micro: micro-batches in a step.
      kind: of the schedule.
      recompute: of each stage, how many of its first blocks are computed again before
        a backward pass instead of being kept; None: of none.

    Raises:
      ValueError: for cuts that do not increase or are out of range, a tie to a stack
        that they cut, and as `parallel.place.places` and `parallel.schedule.schedule`
        do.

    Example:
      >>> import jax.numpy as jnp
      >>> scale = lambda name: Stage(name,
      ...     init=lambda key, spec: ({"k": jnp.float32(2)}, {}),
      ...     apply=lambda p, s, x, *, key, train: (x * p["k"], s, {}))
      >>> pipe = mpmd([scale("a")], lambda y, t: (jnp.mean((y - t) ** 2), {}), cuts=(),
      ...     homes=jax.devices()[:1], micro=2)
      >>> parts = pipe.put({"a": {"k": jnp.float32(2)}}, {"a": {}})
      >>> batch = jnp.ones(4), jnp.zeros(4)
      >>> (value, extra), grads = pipe.value_and_grad(*parts, [batch, batch])
      >>> float(value), float(grads[0]["a"]["k"]), " ".join(map(str, extra["done"][0]))
      (4.0, 4.0, 'F0 B0 F1 B1')

    Reference:
      Z. Lai et al., Merak, 2022, arXiv:2206.04959.

    Differs:
      The part of a stage that is not recomputed is computed once. Merak's public code
      computes a stage twice where its ratio is between 0 and 1.
    """
    flat = join(stages)
    names = [piece.name for piece in pieces(flat.stages)]
    check_cuts(cuts, len(names))
    spans = groups(cuts, len(names))
    counts = [0] * len(spans) if recompute is None else list(recompute)
    if len(counts) != len(spans) or any(
        not 0 <= c <= len(span) for c, span in zip(counts, spans, strict=False)
    ):
        raise ValueError(
            f"recompute={counts}: expected a number for each of the {len(spans)} "
            f"stages, up to its {[len(span) for span in spans]} blocks"
        )
    _check_last(kind, counts[-1] > 0)
    ends, again, parts = [], [], []
    for span, count in zip(spans, counts, strict=True):
        own = [(span.start + count, True)] if count else []
        own += [(span.stop, False)] if count < len(span) else []
        parts.append(tuple(range(len(ends), len(ends) + len(own))))
        ends += [end for end, _ in own]
        again += [flag for _, flag in own]
    free = [untied(stage) for stage in flat.stages]
    made = cut(
        free, after=[names[end - 1] for end in ends[:-1]], owners=["cloud"] * len(ends)
    )
    reads = {stage.name: stage.reads for stage in flat.stages}
    check_reads(made.segments, reads)
    segments, lent = zip(
        *(with_stand_ins(part, reads) for part in made.segments), strict=True
    )
    whole = dataclasses.replace(made, model=flat, segments=segments)
    links = (Link(chain(), chain()),) * (len(segments) - 1)
    return Pipeline(
        Split(whole, links, loss),
        made,
        tuple(parts),
        tuple(again),
        places(homes, len(spans)),
        schedule(len(spans), micro, kind, recompute=[bool(c) for c in counts]),
        lent,
    )


def _check_last(kind: str, recomputes: bool) -> None:
    if kind in ("last", "shifted") and recomputes:
        raise ValueError(
            f"in a schedule {kind!r} the last stage recomputes nothing: make the last "
            "number of `recompute` 0"
        )
