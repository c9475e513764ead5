"""The k largest magnitudes of each row, exactly, faster than by sorting."""

import math

import jax
import jax.numpy as jnp

from splitjax.codecs import bitset
from splitjax.codecs.grid import HUGE
from splitjax.core.tree import is_float

LANES, DEPTH = 32, 2**9  # a count of LANES * DEPTH keys fits into an int16
LEAST = -(2**15)


def largest(x: jax.Array, k: int, *, rows: int) -> jax.Array:
    """Where the k largest magnitudes of each row are.

    The k-th magnitude is found bit by bit, by counting how many are not below it. Where
    k is small against n, groups of neighbors are looked through first: the k largest
    lie in the k groups with the largest maxima. No step depends on the values, so
    neither does the time.

    Args:
      x: float `[..., n]`; what is not `good` counts as zero.
      k: 1 to n.
      rows: how many rows there are in the array, flattened.

    Returns:
      int32 `[rows, k]`, ascending. Of equal magnitudes the first ones are taken.

    Example:
      >>> import jax.numpy as jnp
      >>> largest(jnp.array([[1.0, -3.0, 2.0, 3.0, -2.0]]), 3, rows=1).tolist()
      [[1, 2, 3]]
    """
    n = math.prod(x.shape) // max(rows, 1)
    group = max(16, 2 ** round(math.log2(math.sqrt(n / k))))
    if n / group + k * group > n / 2:
        return bitset.places(_chosen(x.reshape(rows, n), k), k)
    # Groups that do not reach over the end of the last axis are found faster.
    if x.shape[-1] % group:
        x = x.reshape(rows, n)
        x = jnp.pad(x, ((0, 0), (0, -n % group)))
    x = x.reshape(*x.shape[:-1], -1, group)
    chosen = largest(jnp.max(_magnitudes(x), -1).reshape(rows, -1), k, rows=rows)
    x = x.reshape(rows, -1, group)
    x = jnp.take_along_axis(x, chosen[:, :, None], axis=1, mode="promise_in_bounds")
    place = bitset.places(_chosen(x.reshape(rows, k * group), k), k)
    of = jnp.take_along_axis(chosen, place // group, axis=1, mode="promise_in_bounds")
    return of * group + place % group


def _magnitudes(x: jax.Array) -> jax.Array:
    """The bits of |x|, which are in its order; integers are magnitudes already."""
    if not is_float(x):
        return x
    kind = jnp.int16 if x.dtype.itemsize == 2 else jnp.int32
    x = x if kind == jnp.int16 else x.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(x, kind) & jnp.iinfo(kind).max
    top = jnp.asarray(min(HUGE, float(jnp.finfo(x.dtype).max)), x.dtype)
    top = jax.lax.bitcast_convert_type(top, kind)
    return jnp.where(bits <= top, bits, jnp.zeros_like(bits))


def _keys(x: jax.Array) -> tuple[jax.Array, ...]:
    """Magnitudes as int16 in the same order; of 32 bits as two, the higher first."""
    bits = _magnitudes(x)
    if bits.dtype == jnp.int16:
        return (bits,)
    low = (bits & 0xFFFF) + LEAST
    return (bits >> 16).astype(jnp.int16), low.astype(jnp.int16)


def _chosen(x: jax.Array, k: int) -> jax.Array:
    """The set of the k largest."""
    high, *low = _keys(x)
    bar, need = _kth(high, jnp.full(x.shape[0], k, jnp.int32), 0)
    above, equal = high > bar, high == bar
    for keys in low:
        # Only those that are equal so far take part: the others get the least key.
        keys = jnp.where(equal, keys, jnp.int16(LEAST))
        bar, need = _kth(keys, need, LEAST)
        above |= keys > bar
        equal &= keys == bar
    return bitset.pack_mask(above) | bitset.first(bitset.pack_mask(equal), need)


def _kth(keys: jax.Array, k: jax.Array, least: int) -> tuple[jax.Array, jax.Array]:
    """The k-th largest key of each row `[rows, 1]`, and how many of the k equal it."""
    rows, n = keys.shape
    depth = min(DEPTH, -(-n // LANES))
    padded = -(-n // (depth * LANES)) * depth * LANES
    keys = jnp.pad(keys, ((0, 0), (0, padded - n)), constant_values=LEAST)
    keys = keys.reshape(rows, -1, depth, LANES)

    def above(bar):
        mine = keys > bar.astype(jnp.int16)[:, None, None, None]
        lanes = jnp.sum(mine.astype(jnp.int16), 2, dtype=jnp.int16)
        # As one sum it would run along the rows, ten times as slow on a CPU.
        lanes = jax.lax.optimization_barrier(lanes)
        parts = jnp.sum(lanes, 2, dtype=jnp.int16)
        return jnp.sum(parts.astype(jnp.int32), 1)

    bits = 15 if least == 0 else 16

    def step(i, bar):
        probe = bar + (2 ** (bits - 1) >> i)
        return jnp.where(above(probe - 1) >= k, probe, bar)

    bar = jax.lax.fori_loop(0, bits, step, jnp.full(rows, least, jnp.int32))
    return bar.astype(jnp.int16)[:, None], k - above(bar)
