"""The cloud's segments of a cut model as a pipeline: their equal blocks over "pipe"."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from splitjax.core.split import Split
from splitjax.core.stage import Stage, Whole, join, repeat
from splitjax.core.tree import Tree
from splitjax.parallel.alike import blocks_in_a_row
from splitjax.parallel.rules import RULES, Rule, layout
from splitjax.parallel.spmd import pipelined
from splitjax.parallel.tie import stand_in

FULL = 4  # micro-batches for each place: then one idles a fifth of the time at most
PIPE = "pipe"


def piped(
    split: Split,
    mesh: Mesh,
    *,
    microbatches: int = 0,
    rules: Sequence[Rule] = RULES,
) -> Split:
    """The same split, in which the cloud's equal blocks run as a pipeline.

    Of each of the cloud's segments the most equal blocks in a row, as many for each
    place, are stacked and run by `parallel.spmd.pipelined`; what is before and after
    them (blocks that are left over, the head, the loss) runs as before, on the whole
    batch. So the loss is weighted as without a pipeline, whatever a row weighs; the
    gradient of the message is that of the same program; and leaves, optimizer, metrics
    and checkpoints keep their names. Use it with `parallel.spread`, which parts arrays
    over "pipe" while they rest: at each step those of a block are sent to its place.

    Args:
      split: the cut model.
      mesh: see `make_cloud_mesh`; with one place on "pipe" nothing is changed.
      microbatches: in training; times "data" it divides the rows of a batch. 0: the
        most that do, up to four for each place. Where nothing is learned, the most that
        divide the rows are taken, up to this number; and no pipeline where "data"
        does not divide them.
      rules: where the leaves of a block lie; see `rules.place`.

    Returns:
      A split of the same parameters, state and messages. Dropout in a pipelined block
      draws by (microbatch, block), so other numbers than without a pipeline.

    Raises:
      ValueError: for a negative number; on use, where a segment has no such blocks (see
        `parallel.alike`) or the rows of a batch are not divided.

    Example:
      >>> from splitjax.core.cut import cut
      >>> from splitjax.parallel.mesh import make_cloud_mesh
      >>> mesh = make_cloud_mesh("pipe=1", devices=jax.devices()[:1])
      >>> split = Split(cut([]), (), lambda y, t: (y, {}))
      >>> piped(split, mesh) is split
      True

    Reference: see `parallel.spmd.pipelined`.
    Differs:
      blocks are found, and the first and last stages of the segment are no places of
      the pipeline: all places compute them.
    """
    if microbatches < 0:
        raise ValueError(f"microbatches={microbatches}: 1 or more, or 0 to be chosen")
    if mesh.shape.get(PIPE, 1) == 1:
        return split
    segments = tuple(
        _piped(segment, mesh, microbatches, rules) if owner == "cloud" else segment
        for segment, owner in zip(split.cut.segments, split.cut.owners, strict=True)
    )
    return dataclasses.replace(
        split, cut=dataclasses.replace(split.cut, segments=segments)
    )


def _piped(segment: Whole, mesh: Mesh, wanted: int, rules: Sequence[Rule]) -> Whole:
    stages, places = segment.stages, mesh.shape[PIPE]

    def apply(params: Tree, state: Tree, x: Tree, *, key, train):
        row = blocks_in_a_row(stages, params, state, x, places=places, train=train)
        inside = stages[row.first : row.end]
        pipe = _pipe(inside, row.period, state, mesh, wanted, rules)
        made = join(
            [
                *stages[: row.first],
                # They hold the blocks' parameters, which the pipeline reads.
                *(stand_in(stage.name) for stage in inside),
                pipe,
                *stages[row.end :],
            ]
        )
        own = {pipe.name: {}}
        y, new, aux = made.apply(params | own, state | own, x, key=key, train=train)
        return y, {name: new[name] for name in state}, aux

    return Whole(segment.name, segment.init, apply, tags=segment.tags, stages=stages)


def _pipe(
    stages: Sequence[Stage],
    period: int,
    state: Tree,
    mesh: Mesh,
    wanted: int,
    rules: Sequence[Rule],
) -> Stage:
    """The pipeline of some stages, whose parameters it reads; `period` are a block."""
    block = join(stages[:period], name="block")
    stack = repeat(block, len(stages) // period)
    empty = {stage.name: state[stage.name] for stage in block.stages}

    def apply(params: Tree, own: Tree, x: Tree, *, key, train, tied):
        del params
        rows = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(x)}
        if len(rows) != 1:
            raise ValueError(
                f"a pipeline parts the rows of a batch, and what enters it, at "
                f"{block.stages[0].name!r}, has leaves of {sorted(rows)} rows: cut "
                "elsewhere, or give the devices to 'data' or 'tensor'"
            )
        rows, most = rows.pop(), wanted or FULL * mesh.shape[PIPE]
        count = wanted if train and wanted else _divides(rows, most, mesh)
        stacked = {
            stage.name: jax.tree.map(
                lambda *a: jnp.stack(a), *(tied[s.name] for s in stages[at::period])
            )
            for at, stage in enumerate(block.stages)
        }
        over, _ = layout(stacked, mesh, rules=rules, stacked=".*")
        stacked = jax.tree.map(jax.lax.with_sharding_constraint, stacked, over)
        # Scores may be of other batches than steps: where "data" divides one not, each
        # place computes all of it.
        whole = not train and rows % mesh.shape.get("data", 1)
        run = stack if whole else pipelined(stack, mesh, microbatches=count)
        y, _, _ = run.apply(stacked, empty, x, key=key, train=train)
        return y, own, {}

    names = tuple(stage.name for stage in stages)
    # It folds the key: two of the cloud's segments must not draw the same dropout.
    name = f"{PIPE}/{names[0]}"
    return Stage(name, lambda key, spec: ({}, {}), apply, reads=names)


def _divides(rows: int, most: int, mesh: Mesh) -> int:
    """The largest number of micro-batches, up to `most`, that the rows allow; or 1."""
    data = mesh.shape.get("data", 1)
    return max((n for n in range(1, most + 1) if rows % (n * data) == 0), default=1)
