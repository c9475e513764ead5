"""The few values that a grid cannot hold, sent as they are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from splitjax.core.message import Sized

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class Outliers(NamedTuple):
    """Values and where they stood.

    Attributes:
      places: `Sized` int32 `[capacity]`, into the flat array.
      words: `Sized` uint of the values' width `[capacity]`: their bits. (No float: no
        codec that follows may round them.)
    """

    places: Any
    words: Any


def words_of(x: jax.Array) -> jax.Array:
    """The bits of floats, as uint of their width.

    Example:
      >>> hex(int(words_of(jnp.float32(1))))
      '0x3f800000'
    """
    return jax.lax.bitcast_convert_type(x, WORDS[x.dtype.itemsize])


def take_out(
    flat: jax.Array, chosen: jax.Array, capacity: int
) -> tuple[Outliers, jax.Array]:
    """Takes the chosen values out of an array, if they are no more than the capacity.

    Args:
      flat: floats `[N]`.
      chosen: bool `[N]`.
      capacity: how many can be sent.

    Returns:
      The outliers, and how many were chosen, int32: above the capacity none are taken.

    Example:
      >>> x = jnp.array([1.0, jnp.nan, 2.0])
      >>> outliers, count = take_out(x, jnp.isnan(x), 1)
      >>> int(count), put_back(jnp.zeros(3), outliers).tolist()
      (1, [0.0, nan, 0.0])
    """
    count = jnp.sum(chosen, dtype=jnp.int32)
    used = jnp.where(count <= capacity, count, 0)

    def none(flat, chosen):
        word = WORDS[flat.dtype.itemsize]
        return jnp.zeros((capacity,), jnp.int32), jnp.zeros((capacity,), word)

    def find(flat, chosen):
        places = jnp.nonzero(chosen, size=capacity, fill_value=0)[0].astype(jnp.int32)
        real = jax.lax.iota(jnp.int32, capacity) < used
        return places, jnp.where(real, words_of(flat)[places], 0)

    # Looking takes as long as all the rest; most arrays have none.
    find = find if flat.size else none
    places, words = jax.lax.cond(used > 0, find, none, flat, chosen)
    return Outliers(Sized(places, used), Sized(words, used)), count


def put_back(flat: jax.Array, outliers: Outliers) -> jax.Array:
    """Puts outliers where they stood.

    Example: see `take_out`.
    """
    places, used = outliers.places.buffer, outliers.places.used
    real = jax.lax.iota(jnp.int32, places.size) < used
    places = jnp.where(real, places, flat.size)
    values = jax.lax.bitcast_convert_type(outliers.words.buffer, flat.dtype)
    return flat.at[places].set(values, mode="drop")
