"""Floating-point operations of a program, as XLA counts them."""

from collections.abc import Callable

import jax


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
