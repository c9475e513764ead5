"""The grid of a quantizer: its step and its lowest value, as they cross the link."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Larger ones count as infinite, so that a difference of two numbers is finite. Steps
# are no smaller than TINY, so that no product is subnormal (devices differ there).
HUGE, TINY = 2.0**126, 2.0**-100


class Grid(NamedTuple):
    """Values `low + code * step` for whole numbers `code >= 0`.

    Attributes:
      step: bfloat16 or, for a power of two, its int8 exponent.
      low: bfloat16; None when the codes lie around zero.
    """

    step: jax.Array
    low: jax.Array | None


def round_up(x: jax.Array) -> jax.Array:
    """The nearest bfloat16 numbers that are not nearer to zero, as float32.

    On the bits: a cast to bfloat16 and back is a pair that XLA may leave out.

    Example:
      >>> import jax.numpy as jnp
      >>> float(round_up(jnp.float32(1.001)))
      1.0078125
    """
    return _float((bits_of(x) + jnp.uint32(0xFFFF)) & jnp.uint32(0xFFFF0000))


def round_down(x: jax.Array) -> jax.Array:
    """The nearest bfloat16 numbers that are not greater, as float32.

    Example:
      >>> import jax.numpy as jnp
      >>> float(round_down(jnp.float32(1.001))), float(round_down(jnp.float32(-1.001)))
      (1.0, -1.0078125)
    """
    return jnp.where(x < 0, round_up(x), _float(bits_of(x) & jnp.uint32(0xFFFF0000)))


def extent(
    x: jax.Array, axis: int, *, valid: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The least and the greatest value along an axis; both zero where there is none.

    Args:
      x: float32. A NaN or an infinity shows in the result.
      axis: reduced, and kept with size 1.
      valid: bool, broadcast against x: which values count. None: all.

    Example:
      >>> import jax.numpy as jnp
      >>> [float(a[0]) for a in extent(jnp.array([-1.0, 2.0]), 0)]
      [-1.0, 2.0]
    """
    low = jnp.min(x, axis, keepdims=True, initial=jnp.inf, where=valid)
    top = jnp.max(x, axis, keepdims=True, initial=-jnp.inf, where=valid)
    nothing = (low == jnp.inf) & (top == -jnp.inf)
    return jnp.where(nothing, 0.0, low), jnp.where(nothing, 0.0, top)


def fit(
    ends: tuple[jax.Array, jax.Array], levels: int, *, affine: bool, power_of_two: bool
) -> Grid:
    """The finest grid that reaches over all values.

    `low` is rounded down and `step` up, so that no value lies off the grid and the
    error is at most half the step that crosses the link.

    Args:
      ends: least and greatest values, float32, no magnitude above `HUGE`.
      levels: the highest code; for a grid around zero that of its positive half.
      affine: from the least to the greatest value; otherwise around zero.
      power_of_two: whether the step is one.

    Example:
      >>> import jax.numpy as jnp
      >>> ends = jnp.float32(-1), jnp.float32(2)
      >>> grid = fit(ends, 3, affine=True, power_of_two=False)
      >>> float(grid.step), float(grid.low)
      (1.0, -1.0)
    """
    low, top = ends
    # XLA may, or may not, turn x / constant into x * inverse: take the inverse here.
    inverse = jnp.float32(1 / levels)
    sent = None
    if affine:
        low = jnp.where(jnp.abs(low) < TINY, jnp.where(low < 0, -TINY, 0.0), low)
        low = round_down(low)
        sent = low.astype(jnp.bfloat16)
        step = (top - low) * inverse
    else:
        step = jnp.maximum(jnp.abs(low), jnp.abs(top)) * inverse
    step = jnp.maximum(step, TINY)
    if not power_of_two:
        return Grid(round_up(step).astype(jnp.bfloat16), sent)
    bits = bits_of(step)
    up = (bits & jnp.uint32(0x7FFFFF)) != 0
    exponent = (bits >> 23).astype(jnp.int32) - 127 + up.astype(jnp.int32)
    return Grid(exponent.astype(jnp.int8), sent)


def values(grid: Grid) -> tuple[jax.Array, jax.Array | None]:
    """Step and lowest value as float32.

    Example:
      >>> import jax.numpy as jnp
      >>> float(values(Grid(jnp.int8(-2), None))[0])
      0.25
    """
    step = grid.step.astype(jnp.float32)
    if grid.step.dtype == jnp.int8:
        step = _float((grid.step.astype(jnp.int32) + 127).astype(jnp.uint32) << 23)
    return step, None if grid.low is None else grid.low.astype(jnp.float32)


def bits_of(x: jax.Array) -> jax.Array:
    """The bits of float32 numbers, as uint32.

    Example:
      >>> import jax.numpy as jnp
      >>> hex(int(bits_of(jnp.float32(1))))
      '0x3f800000'
    """
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def _float(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
