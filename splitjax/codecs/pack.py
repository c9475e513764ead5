"""Small whole numbers packed into bytes, and back."""

import math

import jax
import jax.numpy as jnp


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` numbers of `bits` bits fill.

    Example:
      >>> packed_bytes(3, 4), packed_bytes(8, 3)
      (2, 3)
    """
    return -(-count * bits // 8)


def pack_bits(codes: jax.Array, bits: int) -> jax.Array:
    """Packs numbers of a few bits into bytes, along the last axis.

    The axis is cut into k slices of equal width, k being the least count of numbers
    that fills whole bytes; byte i holds number i of each slice, lowest bits first.
    (Neighbors in one byte, the usual order, unpack at half the speed on a CPU: slices
    are read and written in long runs.) What is left over makes a last group of its own.

    Args:
      codes: uint8 `[..., n]`, all below `2 ** bits`.
      bits: 1 to 8.

    Returns:
      uint8 `[..., ceil(n * bits / 8)]`.

    Raises:
      ValueError: for other bits, another dtype or a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> pack_bits(jnp.array([1, 2, 3, 4], jnp.uint8), 4).tolist()
      [49, 66]
    """
    _check(codes, bits)
    if bits == 8:
        return codes
    *lead, n = codes.shape
    per, made = _group(bits)
    width, rest = divmod(n, per)
    whole = codes[..., : per * width].reshape(*lead, per, width)
    parts = [
        byte for byte in _to_bytes([whole[..., j, :] for j in range(per)], bits, made)
    ]
    if rest:
        tail = [codes[..., per * width + j :][..., :1] for j in range(rest)]
        parts += _to_bytes(tail, bits, packed_bytes(rest, bits))
    return jnp.concatenate(parts, axis=-1)


def unpack_bits(packed: jax.Array, bits: int, n: int) -> jax.Array:
    """Undoes `pack_bits`.

    Args:
      packed: uint8 `[..., ceil(n * bits / 8)]`.
      bits: as it was packed.
      n: how many numbers.

    Returns:
      uint8 `[..., n]`.

    Raises:
      ValueError: when the bytes are not those of n numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> unpack_bits(pack_bits(jnp.arange(5, dtype=jnp.uint8), 3), 3, 5).tolist()
      [0, 1, 2, 3, 4]
    """
    _check(packed, bits)
    if packed.shape[-1] != packed_bytes(n, bits):
        raise ValueError(
            f"{n} numbers of {bits} bits fill {packed_bytes(n, bits)} bytes, but the "
            f"last axis of {packed.shape} has {packed.shape[-1]}"
        )
    if bits == 8:
        return packed
    lead = packed.shape[:-1]
    per, made = _group(bits)
    width, rest = divmod(n, per)
    whole = packed[..., : made * width].reshape(*lead, made, width)
    parts = _to_numbers([whole[..., b, :] for b in range(made)], bits, per)
    if rest:
        used = packed.shape[-1] - made * width
        tail = [packed[..., made * width + b :][..., :1] for b in range(used)]
        parts += _to_numbers(tail, bits, rest)
    return jnp.concatenate(parts, axis=-1)


def _check(array: jax.Array, bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits={bits}: a number may have 1 to 8 bits")
    if array.dtype != jnp.uint8 or array.ndim == 0:
        raise ValueError(
            f"expected uint8 [..., n], got {array.dtype} {array.shape}: cast and "
            "reshape first"
        )


def _group(bits: int) -> tuple[int, int]:
    """The least count of numbers that fills whole bytes, and those bytes."""
    shared = math.gcd(bits, 8)
    return 8 // shared, bits // shared


def _to_bytes(numbers: list[jax.Array], bits: int, count: int) -> list[jax.Array]:
    """Number j takes bits j * bits on; byte b holds bits 8 * b on."""
    out = []
    for b in range(count):
        byte = jnp.zeros_like(numbers[0])
        for j, number in enumerate(numbers):
            shift = j * bits - 8 * b
            if -bits < shift < 8:
                byte |= number << shift if shift >= 0 else number >> -shift
        out.append(byte)
    return out


def _to_numbers(octets: list[jax.Array], bits: int, count: int) -> list[jax.Array]:
    out = []
    for j in range(count):
        number = jnp.zeros_like(octets[0])
        for b, byte in enumerate(octets):
            shift = j * bits - 8 * b
            if -bits < shift < 8:
                number |= byte >> shift if shift >= 0 else byte << -shift
        out.append(number & (2**bits - 1))
    return out
