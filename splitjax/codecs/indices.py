"""Increasing whole numbers as few bytes: a bitmap, or their gaps."""

import jax
import jax.numpy as jnp

from splitjax.codecs import bitset
from splitjax.codecs.pack import pack_bits, packed_bytes, unpack_bits


def index_bytes(n: int, k: int) -> int:
    """Bytes of the code of k different numbers below n.

    Example:
      >>> index_bytes(768, 8), index_bytes(768, 77), index_bytes(768, 384)
      (9, 51, 96)
    """
    low, high = _parts(n, k)
    return 0 if k == n else packed_bytes(k, low) + packed_bytes(high, 1)


def write_indices(places: jax.Array, n: int) -> jax.Array:
    """Writes increasing numbers, in the shorter of two codes.

    The bitmap has a bit for each number below n. The other is Elias's and Fano's: the
    lowest l = log2(n / k) bits of each number as they are, and the gaps between what is
    left of them in unary: number j sets bit `(number >> l) + j`. Both have a length
    that depends on n and k alone.

    Args:
      places: int32 `[rows, k]`, increasing in each row and below n.
      n: numbers that there are.

    Returns:
      uint8 `[rows, index_bytes(n, k)]`; nothing when k = n.

    Example:
      >>> import jax.numpy as jnp
      >>> write_indices(jnp.array([[3, 9]]), 16).tolist()
      [[8, 2]]

    Reference:
      P. Elias, "Efficient Storage and Retrieval by Content and Address of Static
      Files", Journal of the ACM 21(2), 1974.
    """
    rows, k = places.shape
    if k == n:
        return jnp.zeros((rows, 0), jnp.uint8)
    low, high = _parts(n, k)
    parts = []
    for shift in range(0, low, 8):
        bits = min(8, low - shift)
        part = (places >> shift) & (2**bits - 1)
        parts.append(pack_bits(part.astype(jnp.uint8), bits))
    step = jax.lax.iota(jnp.int32, k)[None]
    marks = (places >> low) + step if low else places
    octets = jax.lax.bitcast_convert_type(bitset.from_places(marks, high), jnp.uint8)
    parts.append(octets.reshape(rows, -1)[:, : packed_bytes(high, 1)])
    return jnp.concatenate(parts, 1)


def read_indices(code: jax.Array, n: int, k: int) -> jax.Array:
    """Undoes `write_indices`.

    Args:
      code: uint8 `[rows, index_bytes(n, k)]`. Bytes that were not written so give
        other numbers, perhaps above n.
      n: numbers that there are.
      k: how many were written.

    Returns:
      int32 `[rows, k]`.

    Example:
      >>> import jax.numpy as jnp
      >>> read_indices(write_indices(jnp.array([[3, 9]]), 16), 16, 2).tolist()
      [[3, 9]]
    """
    rows = code.shape[0]
    if k == n:
        return jnp.broadcast_to(jax.lax.iota(jnp.int32, n)[None], (rows, n))
    low, high = _parts(n, k)
    numbers, start = jnp.zeros((rows, k), jnp.int32), 0
    for shift in range(0, low, 8):
        bits = min(8, low - shift)
        part = code[:, start : start + packed_bytes(k, bits)]
        numbers |= unpack_bits(part, bits, k).astype(jnp.int32) << shift
        start += packed_bytes(k, bits)
    octets = code[:, start:]
    octets = jnp.pad(octets, ((0, 0), (0, -octets.shape[1] % 4)))
    words = jax.lax.bitcast_convert_type(octets.reshape(rows, -1, 4), jnp.uint32)
    marks = bitset.places(words, k)
    if not low:
        return marks
    return numbers | (marks - jax.lax.iota(jnp.int32, k)[None]) << low


def _parts(n: int, k: int) -> tuple[int, int]:
    """Low bits of each number (0: a bitmap), and bits of the rest of all."""
    low = max(n // max(k, 1), 1).bit_length() - 1
    high = k + (max(n, 1) - 1 >> low)
    if packed_bytes(k, low) + packed_bytes(high, 1) < packed_bytes(n, 1) and low:
        return low, high
    return 0, n
