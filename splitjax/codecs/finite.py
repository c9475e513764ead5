"""Which values a codec can take, and zero in the place of the others."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def within(x: jax.Array, top: float) -> jax.Array:
    """Whether each value is finite and no greater than `top` in magnitude.

    Args:
      x: of any float dtype; where the dtype ends below `top` it need only be finite.
      top: the largest magnitude.

    Returns:
      bool, of the same shape.

    Example:
      >>> import jax.numpy as jnp
      >>> within(jnp.array([1.0, jnp.nan, 5.0]), 4.0).tolist()
      [True, False, False]
    """
    if float(jnp.finfo(x.dtype).max) <= top:
        return jnp.isfinite(x)
    return jnp.abs(x) <= jnp.asarray(top, x.dtype)  # false for a NaN


def clearly_within(x: jax.Array) -> jax.Array:
    """Whether all values are finite and below 2^124 in magnitude; one pass on a CPU.

    A product with 16 that is infinite stays so in any sum of float32. So True is sure;
    False may also mean that a sum of sixteenfold values does not fit: look closer then.

    Example:
      >>> import jax.numpy as jnp
      >>> bool(clearly_within(jnp.ones(3))), bool(clearly_within(jnp.array([jnp.nan])))
      (True, False)
    """
    width = x.shape[-1] if x.ndim else 1
    rows = x.reshape(math.prod(x.shape[:-1]), width)
    weights = jnp.full((width,), 16.0, jnp.float32)
    how = {"precision": jax.lax.Precision.HIGHEST}
    sums = jnp.matmul(rows.astype(jnp.float32), weights, **how)
    return jnp.all(jnp.isfinite(sums))


def zero_unless(good: jax.Array, x: jax.Array) -> jax.Array:
    """The values that are good, and zeros.

    Example:
      >>> import jax.numpy as jnp
      >>> zero_unless(jnp.array([True, False]), jnp.array([3.0, jnp.nan])).tolist()
      [3.0, 0.0]
    """
    return jnp.where(good, x, jnp.zeros_like(x))


def real(shape: tuple[int, ...], mask: jax.Array | None) -> jax.Array | None:
    """A mask as it broadcasts against an array, or None where it is for another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> real((2, 3, 4), jnp.ones((2, 3), bool)).shape
      (2, 3, 1)
    """
    if mask is None or shape[: mask.ndim] != mask.shape:
        return None
    return mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim))


def saturate(x: jax.Array, dtype: Any) -> jax.Array:
    """A cast that stays finite where the narrower format ends.

    Example:
      >>> import jax.numpy as jnp
      >>> float(saturate(jnp.float32(1e9), jnp.float16))
      65504.0
    """
    top = float(jnp.finfo(dtype).max)
    return jnp.clip(x, -top, top).astype(dtype)


def count(bad: jax.Array) -> jax.Array:
    """How many are true, int32.

    Example:
      >>> import jax.numpy as jnp
      >>> int(count(jnp.array([[True, False], [True, True]])))
      3
    """
    if not bad.ndim or not bad.size:
        return jnp.sum(bad, dtype=jnp.int32)
    # In steps of 32 rows: one sum over all is many times as slow on a CPU.
    rows = bad.reshape(-1, bad.shape[-1])
    whole = rows.shape[0] // 32 * 32
    blocks = rows[:whole].astype(jnp.int8).reshape(-1, 32, bad.shape[-1])
    blocks = jax.lax.optimization_barrier(jnp.sum(blocks, 1, dtype=jnp.int8))
    rest = jnp.sum(rows[whole:], dtype=jnp.int32)
    return jnp.sum(blocks.astype(jnp.int32)) + rest
