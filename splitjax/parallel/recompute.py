"""How much of each pipeline stage is computed again instead of kept.

A stage that keeps k micro-batches in flight needs k times the room for what its vjp
keeps, so early stages must recompute more than late ones.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax

from splitjax.core.residuals import strip
from splitjax.core.tree import Tree, combine, split_floats


def stage_ratios(
    first: float | Fraction, stages: int, *, shifted: bool = False
) -> tuple[Fraction, ...]:
    """The part of each stage's blocks that is recomputed, from that of the first stage.

    Stage s of p, counted from 0, has p - s micro-batches in flight in 1f1b. With

        ratio_s = max(0, 1 - (1 - first) p' / (p' - s)),   p' = p - 1

    the blocks it keeps, times the micro-batches in flight but one, are the same number
    for all stages but the last, which recomputes nothing.

    Args:
      first: of the first stage, 0 to 1; a float stands for the decimal that it shows.
      stages: p.
      shifted: whether the schedule is: then the last stage but one holds a micro-batch
        more, and takes the ratio of the stage before it.

    Returns:
      Fractions, exact.

    Raises:
      ValueError: for a ratio out of range, or no stage.

    Example:
      >>> [float(ratio) for ratio in stage_ratios(0.75, 4)]
      [0.75, 0.625, 0.25, 0.0]

    Reference:
      Z. Lai et al., Merak, 2022, arXiv:2206.04959, stage-aware recomputation, as its
      public code has it.

    Differs: nothing.
    """
    if not 0 <= first <= 1 or stages < 1:
        raise ValueError(
            f"stage_ratios({first}, {stages}): a ratio is from 0 to 1, and there is "
            "one stage or more"
        )
    kept, borders = 1 - _exact(first), stages - 1
    ratios = [
        max(Fraction(0), 1 - kept * borders / (borders - s)) for s in range(borders)
    ]
    if shifted and borders > 1:
        ratios[-1] = ratios[-2]
    return (*ratios, Fraction(0))


def counts(
    ratios: Sequence[float | Fraction], blocks: Sequence[int]
) -> tuple[int, ...]:
    """How many of each stage's first blocks are recomputed: the ratio, rounded up.

    Example:
      >>> counts(stage_ratios(0.75, 4), [8, 8, 8, 8])
      (6, 5, 2, 0)
    """
    return tuple(
        math.ceil(_exact(ratio) * count)
        for ratio, count in zip(ratios, blocks, strict=True)
    )


def _exact(ratio: float | Fraction) -> Fraction:
    # 0.1 is a little more than a tenth in binary, and would be rounded up.
    return Fraction(str(ratio))


def stage_bytes(
    inputs: Sequence[int], residuals: Sequence[int], recomputed: int, in_flight: int
) -> int:
    """What a stage's micro-batches keep at most between forward and backward passes.

    Each keeps the stage's input where some block is recomputed, and what the vjp of the
    other blocks keeps. The one whose backward pass is next keeps all.

    Args:
      inputs: bytes that enter each block, of one micro-batch.
      residuals: bytes that the vjp of each block keeps.
      recomputed: how many of the first blocks are.
      in_flight: micro-batches.

    Example:
      >>> stage_bytes([1, 1, 1], [10, 10, 10], recomputed=2, in_flight=3)
      53
    """
    each = (inputs[0] if recomputed else 0) + sum(residuals[recomputed:])
    return in_flight * each + sum(residuals[:recomputed])


def fewest_recomputed(
    inputs: Sequence[int],
    residuals: Sequence[int],
    in_flight: int,
    memory_bytes: int,
) -> int:
    """The smallest number of a stage's first blocks whose recomputation fits a memory.

    Args:
      inputs: see `stage_bytes`, as the rest.
      residuals: see `stage_bytes`.
      in_flight: see `stage_bytes`.
      memory_bytes: room for what is kept; parameters have theirs elsewhere.

    Raises:
      ValueError: when no number fits; it names the least that is needed.

    Example:
      >>> fewest_recomputed([1, 1, 1], [10, 10, 10], in_flight=3, memory_bytes=75)
      1
      >>> fewest_recomputed([1, 1, 1], [10, 10, 10], in_flight=3, memory_bytes=32)
      Traceback (most recent call last):
      ...
      ValueError: with 3 micro-batches in flight ... 33 bytes ... there are 32 ...
    """
    need = [
        stage_bytes(inputs, residuals, count, in_flight)
        for count in range(len(inputs) + 1)
    ]
    for count, room in enumerate(need):
        if room <= memory_bytes:
            return count
    raise ValueError(
        f"with {in_flight} micro-batches in flight these {len(inputs)} blocks keep "
        f"{min(need)} bytes at the least, and there are {memory_bytes} bytes: use more "
        "stages, or smaller micro-batches"
    )


def block_vjp(
    forward: Callable[..., Tree], params: Tree, state: Tree, x: Tree, more: Tree
) -> tuple[Tree, Any]:
    """The vjp of a block in its parameters, its input's floats and what it reads.

    Args:
      forward: `(params, state, x, more) -> y`.
      params: arrays.
      state: of the block; it takes no gradient.
      x: its input; what is no float takes no gradient.
      more: what else it reads that is trained: tied parameters.

    Returns:
      The floats of y, and the function from their gradient to those of params, the
      floats of x, and more.

    Example:
      >>> import jax.numpy as jnp
      >>> x = {"h": jnp.float32(3), "ids": jnp.int32(0)}
      >>> y, pull = block_vjp(lambda p, s, x, m: x | {"h": x["h"] * p * m},
      ...     jnp.float32(2), (), x, jnp.float32(5))
      >>> own, of_x, tied = pull(y)
      >>> float(y["h"]), float(own), float(of_x["h"]), of_x["ids"], float(tied)
      (30.0, 450.0, 300.0, None, 180.0)
    """
    floats, rest = split_floats(x)
    return jax.vjp(
        lambda p, f, m: split_floats(forward(p, state, combine(f, rest), m))[0],
        params,
        floats,
        more,
    )


def residual_leaves(
    forward: Callable[..., Tree], params: Tree, state: Tree, x: Tree, more: Tree
) -> tuple[Any, ...]:
    """Specs of what the vjp of a block keeps, the parameters left out, each once.

    Args:
      forward: see `block_vjp`, as the rest.
      params: arrays or specs, as the rest.
      state: see `block_vjp`.
      x: see `block_vjp`.
      more: see `block_vjp`.

    Example:
      >>> import jax.numpy as jnp
      >>> w, x = jnp.ones((3, 5)), jnp.ones((2, 3))
      >>> found = residual_leaves(lambda w, s, x, t: x @ w, w, (), x, ())
      >>> [leaf.shape for leaf in found]
      [(2, 3)]
    """

    def run(params, state, x, more):
        _, pull = block_vjp(forward, params, state, x, more)
        kept = jax.tree.leaves(strip(pull, (params, more)).leaves)
        return tuple({id(leaf): leaf for leaf in kept}.values())

    return jax.eval_shape(run, params, state, x, more)
