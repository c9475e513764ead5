"""A tensor-parallel block on parts of a batch, so that sums overlap with products."""

import jax
import jax.numpy as jnp

from splitjax.core.keys import fold
from splitjax.core.stage import Stage, with_apply
from splitjax.core.tree import Tree


def tp_halves(stage: Stage, parts: int = 2) -> Stage:
    """A stage that runs on parts of its batch, one after the other.

    The all-reduce of one part does not depend on the products of the next, so a
    compiler that hides latency may run them at the same time. Ours is the order; on
    GPUs its combiner must not join the parts' sums again
    (`--xla_gpu_all_reduce_combine_threshold_bytes=0`). A CPU shows equality alone.

    Part i has the rows i, i + parts, i + 2 parts, ...: a batch that lies over "data"
    then stays where it is. (The first and the last half would be sent around.)

    Args:
      stage: its output depends row by row on its input, and it has no state.
      parts: how many; they divide the batch.

    Returns:
      The stage, which is not opened again. Dropout draws for each part by a key of its
      own, so other numbers than without parts. A scalar of `aux` is the mean
      over the parts.

    Raises:
      ValueError: on use, for a batch that is not divided, or a stage with a state.

    Example:
      >>> double = Stage("double", init=lambda key, spec: ({}, {}),
      ...     apply=lambda p, s, x, *, key, train: (2 * x, s, {}))
      >>> x = jnp.arange(4.0)
      >>> tp_halves(double).apply({}, {}, x, key=None, train=False)[0].tolist()
      [0.0, 2.0, 4.0, 6.0]

    Reference:
      Lai et al., Merak: An efficient distributed DNN training framework with automated
      3D parallelism for giant foundation models, 2022 (arXiv:2206.04959),
      sub-pipelined tensor model parallelism.
    Differs:
      the paper interleaves within a block on streams of its own; here the compiler
      orders. The halves are strided, not contiguous.
    """
    if parts < 1:
        raise ValueError(f"parts={parts}: 1 or more")

    def apply(params: Tree, state: Tree, x: Tree, *, key, train, **tied):
        if jax.tree.leaves(state):
            raise ValueError(
                f"{stage.name} has a state (statistics of a batch): its parts would "
                "each see their own; leave tp_halves away"
            )
        rows = {len(leaf) for leaf in jax.tree.leaves(x)}
        if any(number % parts for number in rows):
            raise ValueError(
                f"{stage.name}: a batch of {sorted(rows)} rows in {parts} parts: give "
                f"a multiple of {parts}"
            )

        def part(index: int):
            rows = jax.tree.map(
                lambda a: a.reshape(-1, parts, *a.shape[1:])[:, index], x
            )
            own = fold(key, "part", index)
            return stage.apply(params, state, rows, key=own, train=train, **tied)

        made = [part(index) for index in range(parts)]
        y = jax.tree.map(
            lambda *a: jnp.stack(a, 1).reshape(-1, *a[0].shape[1:]),
            *(one[0] for one in made),
        )
        aux = jax.tree.map(lambda *a: sum(a[1:], a[0]) / parts, *(m[2] for m in made))
        return y, state, aux

    return with_apply(stage, apply)
