"""The format that floats are computed in, where their own is too narrow for it."""

from typing import Any

import jax
import jax.numpy as jnp


def wide(dtype: Any) -> jnp.dtype:
    """float32 for the narrower floats, whose cast is exact; float64 stays.

    Sums, decompositions and exponents are computed in it, and the result is cast back.

    Args:
      dtype: of floats.

    Example:
      >>> wide(jnp.bfloat16).name, wide(jnp.float64).name
      ('float32', 'float64')
    """
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def widened(x: jax.Array) -> jax.Array:
    """An array of floats in the format to compute in: see `wide`.

    Example:
      >>> widened(jnp.ones(1, jnp.float16)).dtype.name
      'float32'
    """
    return x.astype(wide(x.dtype))
