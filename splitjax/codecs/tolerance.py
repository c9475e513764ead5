"""Whole numbers of steps that are no further from their values than a bound."""

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.codecs.grid import HUGE, TINY
from splitjax.codecs.outliers import words_of

MOST = 2.0**24  # above, float32 holds no neighbors
LARGEST = 2.0**110


def below(value: float) -> float:
    """The greatest float32 that is not above.

    Example:
      >>> below(0.1) < 0.1 < 1.0000001 * below(0.1)
      True
    """
    near = np.float32(value)
    return float(np.nextafter(near, np.float32(0)) if float(near) > value else near)


def as_bound(eb: float | jax.Array, name: str) -> float | jax.Array:
    """A bound as float32, not above what was given.

    Args:
      eb: from 2^-99 to 2^110, or a float32 scalar array, which is taken as it is.
      name: whose bound it is, for the error.

    Raises:
      ValueError: for anything else.

    Example:
      >>> as_bound(0.5, "bounded")
      0.5
    """
    if isinstance(eb, jax.Array):
        if eb.shape or eb.dtype != jnp.float32:
            raise ValueError(
                f"{name}(eb): expected a float32 scalar, got {eb.dtype} {eb.shape}"
            )
        return eb
    if not 2 * TINY <= eb <= LARGEST:
        raise ValueError(
            f"{name}(eb={eb}): a bound is from 2^-99 to 2^110; to lose nothing, use "
            "lossless()"
        )
    return below(float(eb))


def step_of(bound: jax.Array) -> jax.Array:
    """The largest step of 8 significant bits below twice the bound, float32.

    Example:
      >>> float(step_of(jnp.float32(0.5))), float(step_of(jnp.float32(0.3)))
      (0.99609375, 0.59765625)
    """
    sound = (bound >= TINY) & (bound <= LARGEST)
    bits = words_of(2 * jnp.where(sound, bound, 1.0)) - 1
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)


def on_grid(
    x: jax.Array, step: jax.Array, bound: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The nearest whole numbers of steps, and where they are not near enough.

    Args:
      x: floats of any shape.
      step: see `step_of`.
      bound: float32 scalar.

    Returns:
      int32 of x's shape, and bool: where number * step, rounded to x's dtype, is
      further from x than the bound. Everywhere, for a bound that is none.

    Example:
      >>> numbers, bad = on_grid(jnp.array([1.0, jnp.inf]), jnp.float32(0.5), 0.3)
      >>> numbers.tolist(), bad.tolist()
      ([2, 0], [False, True])
    """

    def grid(x):
        wide = x.astype(jnp.float32)
        good = jnp.abs(wide) <= HUGE  # false for a NaN
        wide = jnp.where(good, wide, 0.0)
        place = wide * (1 / step)
        near = jnp.abs(place) <= MOST
        place = jnp.round(jnp.where(near, place, 0.0))
        # What the decoder will have. A cast and its reverse are a pair that XLA may
        # leave out, but for the barrier.
        numbers = place.astype(jnp.int32)
        # The quotient was rounded; what is left over is exact.
        left = (wide - values_of(numbers, step)) * (1 / step)
        numbers += jnp.round(jnp.where(near, left, 0.0)).astype(jnp.int32)
        back = jax.lax.optimization_barrier(values_of(numbers, step).astype(x.dtype))
        close = jnp.abs(wide - back.astype(jnp.float32)) <= bound
        return numbers, ~(good & near & close)

    def none(x):
        return jnp.zeros(x.shape, jnp.int32), jnp.broadcast_to(~sound, x.shape)

    # A branch, so that XLA does it once, and not again for each use.
    bound = jnp.asarray(bound, jnp.float32)
    sound = (bound >= TINY) & (bound <= LARGEST)
    return jax.lax.cond(sound & jnp.any(x != 0), grid, none, x)


def values_of(numbers: jax.Array, step: jax.Array) -> jax.Array:
    """number * step, rounded once to float32.

    In two parts whose products are exact, so that it does not matter whether a device
    fuses a product and a sum.

    Args:
      numbers: int32, no magnitude above 2^24.
      step: float32 of 8 significant bits.

    Example:
      >>> values_of(jnp.array([3, -5000]), jnp.float32(0.5)).tolist()
      [1.5, -2500.0]
    """
    high, low = numbers >> 12, numbers & 4095
    return high.astype(jnp.float32) * (step * 4096) + low.astype(jnp.float32) * step
