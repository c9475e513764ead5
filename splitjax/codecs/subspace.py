"""Products with tall matrices that stay finite, and orthonormal ones."""

import jax
import jax.numpy as jnp

from splitjax.codecs.finite import count, real, saturate, within, zero_unless
from splitjax.codecs.grid import HUGE, TINY
from splitjax.core.noise import uniform


def clear(
    x: jax.Array, used: jax.Array | None, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The array in float32 without padding and what is not finite, and their count.

    Example:
      >>> import jax.numpy as jnp
      >>> x, bad = clear(jnp.array([1.0, jnp.nan, 2.0]), jnp.int32(2), None)
      >>> x.tolist(), int(bad)
      ([1.0, 0.0, 0.0], 1)
    """
    valid, good = real(x.shape, mask), within(x, HUGE)
    if used is not None:
        row = jax.lax.iota(jnp.int32, x.shape[0]) < used
        valid = row.reshape(-1, *[1] * (x.ndim - 1))
    bad = ~good if valid is None else ~good & valid
    good = good if valid is None else good & valid
    return zero_unless(good, x).astype(jnp.float32), count(bad)


def unit(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The array over a power of two, so that no magnitude reaches 2, and that power.

    Example:
      >>> import jax.numpy as jnp
      >>> small, scale = unit(jnp.array([3.0, -1.0]))
      >>> small.tolist(), float(scale)
      ([1.5, -0.5], 2.0)
    """
    top = jnp.maximum(jnp.max(jnp.abs(x), initial=0.0), TINY)
    bits = jax.lax.bitcast_convert_type(top, jnp.int32) & 0x7F800000
    scale = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return x * (1 / scale), scale


def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """The matrix product over the last two axes, float32, in full precision.

    Example:
      >>> import jax.numpy as jnp
      >>> multiply(jnp.ones((1, 2)), jnp.ones((2, 1))).tolist()
      [[2.0]]
    """
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def rescaled(y: jax.Array, scale: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Undoes `unit` after a product; what is too large for the dtype saturates.

    Example:
      >>> import jax.numpy as jnp
      >>> float(rescaled(jnp.float32(1.5), jnp.float32(2), jnp.float16))
      3.0
    """
    return saturate(y * scale, dtype)


def orthonormal(a: jax.Array) -> jax.Array:
    """Columns that span those of `[..., n, r]`, orthonormal, also when those are not.

    By Householder reflections: for lack of a direction any other is taken, not NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> float(jnp.abs(orthonormal(jnp.zeros((3, 1)))).sum())
      1.0
    """
    return jnp.linalg.qr(a)[0]


def start(shape: tuple[int, ...]) -> jax.Array:
    """Numbers in [-1/2, 1/2) that are the same everywhere, to begin an iteration with.

    Example:
      >>> start((3, 2)).shape
      (3, 2)
    """
    return uniform(jax.random.key(0), shape) - 0.5
