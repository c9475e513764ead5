"""Schedules of a pipeline: what each stage does, and in which order.

Nothing here knows JAX: a schedule is a list of operations for each stage.
`parallel.timeline` times the lists, and `parallel.mpmd` executes the very same ones.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from splitjax.core.tree import nearest

FORWARD, RECOMPUTE, WAIT, BACKWARD = "F", "R", "G", "B"
KINDS = ("gpipe", "1f1b", "early", "last", "shifted")


class Op(NamedTuple):
    """One operation of one stage on one micro-batch.

    Attributes:
      kind: "F", the forward pass; "R", it once more, for what was not kept; "G", the
        wait for the gradient from the next stage; "B", the backward pass.
      micro: the number of the micro-batch, from 0.

    Example:
      >>> str(Op("F", 3))
      'F3'
    """

    kind: str
    micro: int

    def __str__(self) -> str:
        return f"{self.kind}{self.micro}"


Lists = Sequence[Sequence[Op]]


def schedule(
    stages: int,
    micro: int,
    kind: str = "1f1b",
    *,
    recompute: bool | Sequence[bool] = True,
) -> tuple[tuple[Op, ...], ...]:
    """The operations of each stage of a pipeline, in order.

    With p stages, stage s has in

    * gpipe: all forwards, then all backwards;
    * 1f1b: min(n, p - 1 - s) forwards, then a forward and a backward in turn, then the
      backwards that are left;
    * early: as 1f1b, but the recomputations of those last backwards do not wait for
      the gradient;
    * last: as early; the last stage recomputes nothing, and stage p - 2 recomputes
      micro-batch 0 before its gradient comes, too;
    * shifted: as last; stage p - 2 makes its third forward before its first backward,
      and recomputes micro-batches 0 and 1 before their gradients come; stage p - 3
      does so with micro-batch 0.

    Backwards go by the number of the micro-batch in all of them, so that gradients are
    summed in one order.

    Args:
      stages: p.
      micro: n, micro-batches in a step.
      kind: one of `KINDS`.
      recompute: whether a stage computes its forward pass again before a backward;
        one for all, or one for each.

    Raises:
      ValueError: for a number below 1, an unknown kind, or too few micro-batches or
        nothing to recompute where a kind needs them.

    Example:
      >>> [" ".join(map(str, ops)) for ops in schedule(2, 3, recompute=False)]
      ['F0 F1 G0 B0 F2 G1 B1 G2 B2', 'F0 B0 F1 B1 F2 B2']
      >>> " ".join(map(str, schedule(2, 4, "shifted")[0]))
      'F0 F1 F2 R0 G0 B0 R1 G1 B1 F3 G2 R2 B2 R3 G3 B3'

    Reference:
      Z. Lai et al., "Merak: An Efficient Distributed DNN Training Framework with
      Automated 3D Parallelism for Giant Foundation Models", 2022, arXiv:2206.04959:
      early, last and shifted, as the instruction lists of its public code have them.
      Y. Huang et al., "GPipe", 2018, arXiv:1811.06965. D. Narayanan et al.,
      "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM",
      2021, arXiv:2104.04473: 1f1b.

    Differs:
      gpipe goes backward from the first micro-batch, not from the last: equally long.
    """
    if stages < 1 or micro < 1:
        raise ValueError(f"schedule({stages=}, {micro=}): both are 1 or more")
    if kind not in KINDS:
        raise ValueError(f"schedule kind {kind!r}: {nearest(kind, KINDS)}")
    if kind == "shifted" and (micro < stages or micro < 4):
        raise ValueError(
            f"a shifted schedule of {stages} stages needs {max(stages, 4)} "
            f"micro-batches or more: {micro}. Use more of them, or kind='last'"
        )
    again = [recompute] * stages if isinstance(recompute, bool) else list(recompute)
    if len(again) != stages:
        raise ValueError(
            f"{stages} stages, but recompute names {len(again)}: {recompute}"
        )
    if kind in ("last", "shifted"):
        again[-1] = False
    if kind in ("early", "last", "shifted") and stages > 1 and not any(again):
        raise ValueError(
            f"a schedule {kind!r} orders recomputations, and no stage recomputes: use "
            "kind='1f1b'"
        )
    return tuple(tuple(_stage(s, stages, micro, kind, again[s])) for s in range(stages))


def _stage(s: int, p: int, n: int, kind: str, again: bool) -> Iterator[Op]:
    """The operations of one stage."""
    warm = n if kind == "gpipe" else min(n, p - 1 - s)
    order = [Op(FORWARD, i) for i in range(warm)]
    for i in range(n - warm):
        order += [Op(FORWARD, warm + i), Op(BACKWARD, i)]
    order += [Op(BACKWARD, i) for i in range(n - warm, n)]
    eager = set() if kind in ("gpipe", "1f1b") else set(range(n - warm, n))
    if kind in ("last", "shifted") and s == p - 2:
        eager.add(0)
    if kind == "shifted" and s == p - 2:
        eager.add(1)
        i, j = order.index(Op(BACKWARD, 0)), order.index(Op(FORWARD, 2))
        order[i], order[j] = order[j], order[i]
    if kind == "shifted" and s == p - 3:
        eager.add(0)
    for op in order:
        if op.kind == BACKWARD:
            wait = [Op(WAIT, op.micro)] if s < p - 1 else []
            fresh = [Op(RECOMPUTE, op.micro)] if again else []
            yield from fresh + wait if op.micro in eager else wait + fresh
        yield op


def walk(lists: Lists) -> Iterator[tuple[int, Op]]:
    """The operations of all stages in an order in which they can be done.

    Each is yielded when all that it needs has been; within a stage the order is the
    list's.

    Raises:
      ValueError: for an operation that comes twice or before what it needs on its own
        stage, a forward pass without its backward, and for lists that wait for each
        other.

    Example:
      >>> " ".join(f"{op}@{stage}" for stage, op in walk(schedule(2, 1)))
      'F0@0 F0@1 R0@1 B0@1 G0@0 R0@0 B0@0'
    """
    for stage, ops in enumerate(lists):
        _check(stage, ops, len(lists))
    done: set[tuple[int, Op]] = set()
    at = [0] * len(lists)
    while any(place < len(ops) for place, ops in zip(at, lists, strict=True)):
        before = len(done)
        for stage, ops in enumerate(lists):
            if at[stage] == len(ops):
                continue
            op = ops[at[stage]]
            if (need := needed(stage, op)) is None or need in done:
                yield stage, op
                done.add((stage, op))
                at[stage] += 1
        if len(done) == before:
            stuck = [
                f"stage {stage} at {ops[place]}"
                for stage, (place, ops) in enumerate(zip(at, lists, strict=True))
                if place < len(ops)
            ]
            raise ValueError(f"these lists wait for each other: {', '.join(stuck)}")


def needed(stage: int, op: Op) -> tuple[int, Op] | None:
    """What another stage must have done before an operation, and where.

    Example:
      >>> needed(2, Op("F", 0)), needed(0, Op("F", 0))
      ((1, Op(kind='F', micro=0)), None)
    """
    if op.kind == FORWARD and stage > 0:
        return stage - 1, op
    if op.kind == WAIT:
        return stage + 1, Op(BACKWARD, op.micro)
    return None


def _check(stage: int, ops: Sequence[Op], stages: int) -> None:
    place = {op: number for number, op in enumerate(ops)}
    if len(place) < len(ops):
        raise ValueError(
            f"stage {stage} does an operation twice: {list(map(str, ops))}"
        )
    for op in ops:
        if op.kind == WAIT and stage == stages - 1:
            raise ValueError(f"stage {stage} is the last: {op} waits for nobody")
        if op.kind != FORWARD and Op(FORWARD, op.micro) not in place:
            raise ValueError(f"stage {stage} has {op} without F{op.micro}")
    for micro in (op.micro for op in ops if op.kind == FORWARD):
        want = [FORWARD, BACKWARD] if stage == stages - 1 else [FORWARD, WAIT, BACKWARD]
        there = [place.get(Op(kind, micro), -1) for kind in want]
        again = place.get(Op(RECOMPUTE, micro), there[0] + 0.5)
        if -1 in there or there != sorted(there) or not there[0] < again < there[-1]:
            found = " ".join(str(op) for op in ops if op.micro == micro)
            wanted = " ".join(f"{kind}{micro}" for kind in want)
            raise ValueError(
                f"stage {stage} must do {wanted} in this order, and R{micro}, if at "
                f"all, before B{micro}: {found}"
            )
