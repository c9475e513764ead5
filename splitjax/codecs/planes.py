"""Whole numbers as bytes, as many as they need: by blocks of one width, or whole."""

import functools

import jax
import jax.numpy as jnp

MAX_WIDTH = 32
PLAIN = 128  # in the byte of a width: no number of the block is below zero


def pack_blocks(
    numbers: jax.Array, block: int, capacity_bytes: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Packs numbers by blocks, each with the bits that its largest needs.

    The lowest bits of all blocks that have any come first, then the next ones, each
    block's in `block / 8` bytes, number i in bit i. A block of zeros takes none. Where
    no number of a block is below zero the sign takes no bit (elsewhere zigzag: 0, -1,
    1, -2, ...).

    Args:
      numbers: int32 `[N]`.
      block: numbers of a block, a multiple of 8.
      capacity_bytes: of the result; what goes beyond is lost.

    Returns:
      The widths, uint8 `[ceil(N / block)]`; the bytes, uint8 `[capacity_bytes]`; and
      how many bytes there are, int32: they fit if that is no more than the capacity.

    Example:
      >>> widths, packed, used = pack_blocks(jnp.arange(16) % 4, 8, 9)
      >>> [w % PLAIN for w in widths.tolist()], int(used)
      ([2, 2], 4)
      >>> unpack_blocks(widths, packed, 16, 8)[:6].tolist()
      [0, 1, 2, 3, 0, 1]
    """
    row_bytes = block // 8
    rows = capacity_bytes // row_bytes
    # Blocks are columns: on a CPU a reduction over short rows takes ten times as long.
    numbers = jnp.pad(numbers, (0, -numbers.size % block)).reshape(-1, block).T
    plain = jnp.all(numbers >= 0, axis=0)
    codes = jnp.where(plain[None], numbers.astype(jnp.uint32), zigzag(numbers))
    top = jnp.max(codes, axis=0, initial=jnp.uint32(0))
    widths = MAX_WIDTH - jax.lax.clz(top).astype(jnp.int32)

    def add(plane, done):
        packed, used = done
        place, some = _places(widths, plane, used)
        bits = ((codes >> jnp.asarray(plane, jnp.uint32)) & 1).astype(jnp.uint8)
        bits = bits.reshape(row_bytes, 8, -1)
        row = functools.reduce(jnp.bitwise_or, [bits[:, i] << i for i in range(8)])
        place = jnp.where(some, place, rows)
        packed = packed.at[place].set(row.T, mode="drop")
        return packed, used + jnp.sum(some, dtype=jnp.int32)

    packed = jnp.zeros((rows, row_bytes), jnp.uint8), jnp.int32(0)
    most = jnp.max(widths, initial=0)
    packed, used = jax.lax.fori_loop(jnp.int32(0), most, add, packed)
    packed = jnp.pad(packed.reshape(-1), (0, capacity_bytes - rows * row_bytes))
    mark = jnp.where(plain & (widths > 0), PLAIN, 0)
    return (widths + mark).astype(jnp.uint8), packed, used * row_bytes


def unpack_blocks(
    widths: jax.Array, packed: jax.Array, count: int, block: int
) -> jax.Array:
    """Undoes `pack_blocks`: int32 `[count]`.

    Example: see `pack_blocks`.
    """
    row_bytes = block // 8
    rows = packed.size // row_bytes
    packed = packed[: rows * row_bytes].reshape(rows, row_bytes)
    plain = (widths >= PLAIN)[None]
    size = jnp.minimum((widths % PLAIN).astype(jnp.int32), MAX_WIDTH)

    def add(plane, done):
        codes, used = done
        place, some = _places(size, plane, used)
        row = jnp.take(packed, place, axis=0, mode="fill", fill_value=0)
        row = jnp.where(some[None], row.T, 0)
        bits = jnp.stack([(row >> i) & 1 for i in range(8)], axis=1)
        bits = bits.reshape(block, -1).astype(jnp.uint32)
        codes |= bits << jnp.asarray(plane, jnp.uint32)
        return codes, used + jnp.sum(some, dtype=jnp.int32)

    codes = jnp.zeros((block, widths.size), jnp.uint32), jnp.int32(0)
    most = jnp.max(size, initial=0)
    codes, _ = jax.lax.fori_loop(jnp.int32(0), most, add, codes)
    numbers = jnp.where(plain, codes.astype(jnp.int32), unzigzag(codes))
    return numbers.T.reshape(-1)[:count]


def pack_whole(numbers: jax.Array, capacity_bytes: int) -> tuple[jax.Array, jax.Array]:
    """The lowest bytes of all numbers, then the next ones, as many as the largest has.

    Long runs of like bytes, as an entropy coder wants them.

    Args:
      numbers: int32 `[N]`.
      capacity_bytes: of the result, a multiple of N; what goes beyond is lost.

    Returns:
      The bytes, uint8 `[capacity_bytes]`, and how many there are, int32.

    Example:
      >>> packed, used = pack_whole(jnp.array([1, -300]), 8)
      >>> int(used), unpack_whole(packed, 2).tolist()
      (4, [1, -300])
    """
    codes = zigzag(numbers)
    width = MAX_WIDTH - jax.lax.clz(jnp.max(codes, initial=jnp.uint32(0)))
    count = (width.astype(jnp.int32) + 7) // 8
    planes = capacity_bytes // max(1, numbers.size)
    parts = [(codes >> jnp.uint32(8 * k)).astype(jnp.uint8) for k in range(planes)]
    packed = jnp.concatenate([*parts, jnp.zeros((0,), jnp.uint8)])
    return packed, count * numbers.size


def unpack_whole(packed: jax.Array, count: int) -> jax.Array:
    """Undoes `pack_whole`: int32 `[count]`.

    Example: see `pack_whole`.
    """
    codes = jnp.zeros((count,), jnp.uint32)
    for plane, part in enumerate(packed.reshape(-1, count) if count else ()):
        codes |= part.astype(jnp.uint32) << jnp.uint32(8 * plane)
    return unzigzag(codes)


def zigzag(numbers: jax.Array) -> jax.Array:
    """Numbers around zero as numbers from zero: 0, -1, 1, -2 become 0, 1, 2, 3.

    Example:
      >>> zigzag(jnp.array([0, -1, 1, -2])).tolist()
      [0, 1, 2, 3]
    """
    return ((numbers << 1) ^ (numbers >> 31)).astype(jnp.uint32)


def unzigzag(codes: jax.Array) -> jax.Array:
    """Undoes `zigzag`.

    Example:
      >>> unzigzag(jnp.arange(4, dtype=jnp.uint32)).tolist()
      [0, -1, 1, -2]
    """
    codes = codes.astype(jnp.uint32)
    return (codes >> 1).astype(jnp.int32) ^ -(codes & 1).astype(jnp.int32)


def _places(widths, plane, used):
    """Where each block's row of a plane is, and which blocks have one."""
    some = widths > plane
    return used + jnp.cumsum(some, dtype=jnp.int32) - 1, some
