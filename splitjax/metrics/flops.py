"""Floating-point operations of a program, as XLA counts them."""

from collections.abc import Callable

import jax

from splitjax.core.cut import Cut
from splitjax.core.tree import Tree, spec_of


def flops(function: Callable, *specs) -> float:
    """Operations of one call, from the lowered program; nothing is run.

    Args:
      function: any jittable function.
      *specs: arrays or `jax.ShapeDtypeStruct` trees.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> a = jax.ShapeDtypeStruct((8, 8), jnp.float32)
      >>> flops(lambda a, b: a @ b, a, a)
      1024.0
    """
    analysis = jax.jit(function).lower(*specs).cost_analysis()
    return float((analysis or {}).get("flops", 0.0))


def edge_share(cut: Cut, params: Tree, state: Tree, x: Tree) -> float:
    """The edge's part of the floating-point operations of a forward pass, 0 to 1.

    Args:
      cut: the model.
      params: of the whole model, by stage name.
      state: likewise.
      x: an input (arrays or specs).
    """
    own, total, spec = 0.0, 0.0, spec_of(x)
    parts = zip(
        cut.segments,
        cut.owners,
        cut.partition(params),
        cut.partition(state),
        strict=True,
    )
    for segment, owner, p, s in parts:

        def run(p, s, x, segment=segment):
            return segment.apply(p, s, x, key=None, train=False)[0]

        count = flops(run, p, s, spec) if segment.stages else 0.0
        spec = jax.eval_shape(run, p, s, spec)
        total += count
        own += count if owner == "edge" else 0.0
    return own / total if total else 1.0
