"""Products of signs by XNOR and a count of bits: what binary hardware computes.

They show what a binary layer costs where bits are cheap, and equal the matrix product
exactly. XLA's own product of floats is faster on most machines that have one.
"""

import jax
import jax.numpy as jnp

from splitjax.codecs.pack import pack_bits


def sign_bits(x: jax.Array) -> jax.Array:
    """Signs along the last axis as bits, 1 for what is not below zero.

    Args:
      x: (..., n) of any float dtype.

    Returns:
      uint8 (..., ceil(n / 8)); bits that are left over are 0.

    Example:
      >>> sign_bits(jnp.array([1.0, -1.0, 1.0])).tolist()
      [5]
    """
    return pack_bits((~(x < 0)).astype(jnp.uint8), 1)


def popcount_dot(
    x: jax.Array, w: jax.Array, n: int, *, valid: jax.Array | None = None
) -> jax.Array:
    """Dot products of signs: `x . w = n - 2 popcount(x xor w)`.

    Args:
      x: uint8 (..., K), from `sign_bits`.
      w: uint8 (J, K), likewise.
      n: signs of a row.
      valid: uint8 (..., K): bits of x that are signs at all; the others count as 0.

    Returns:
      int32 (..., J).

    Raises:
      ValueError: when the widths differ.

    Example:
      >>> x = jnp.array([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0]])
      >>> popcount_dot(sign_bits(x), sign_bits(x), 3).tolist()
      [[3, 1], [1, 3]]

    Reference:
      M. Rastegari et al., "XNOR-Net", 2016, arXiv:1603.05279, section 3.2.
    """
    if x.shape[-1] != w.shape[-1] or x.shape[-1] != -(-n // 8):
        raise ValueError(f"{n} signs are {-(-n // 8)} bytes; got {x.shape}, {w.shape}")
    unlike = x[..., None, :] ^ jnp.expand_dims(w, tuple(range(x.ndim - 1)))
    total = jnp.int32(n)
    if valid is not None:
        unlike &= valid[..., None, :]
        total = _ones(valid)[..., None]
    return total - 2 * _ones(unlike)


def xnor_dot(x: jax.Array, latent: jax.Array) -> jax.Array:
    """What `BinaryDense` computes of signs, by counting bits.

    Args:
      x: (..., I) signs.
      latent: (I, J).

    Example:
      >>> xnor_dot(jnp.array([[1.0, -1.0]]), jnp.array([[0.3], [-0.2]])).tolist()
      [[2.0]]
    """
    n = latent.shape[0]
    return popcount_dot(sign_bits(x), sign_bits(latent.T), n).astype(jnp.float32)


def xnor_conv(x: jax.Array, latent: jax.Array, *, stride: int = 1) -> jax.Array:
    """What `BinaryConv` computes of signs, by counting bits.

    Args:
      x: (B, H, W, I) signs.
      latent: (size, size, I, J).
      stride: between places.

    Example:
      >>> xnor_conv(jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
      [[4.0, 4.0], [4.0, 4.0]]
    """
    size, n = latent.shape[0], latent.shape[0] * latent.shape[1] * latent.shape[2]

    def patches(a):
        around = (size // 2, size // 2)
        return jax.lax.conv_general_dilated_patches(
            a,
            (size, size),
            (stride, stride),
            (around, around),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    # Patches have the channels outermost.
    rows = latent.transpose(3, 2, 0, 1).reshape(-1, n)
    inside = patches(jnp.ones_like(x))
    valid = pack_bits((inside > 0).astype(jnp.uint8), 1)
    found = popcount_dot(sign_bits(patches(x)), sign_bits(rows), n, valid=valid)
    return found.astype(jnp.float32)


def _ones(bits: jax.Array) -> jax.Array:
    return jnp.sum(jax.lax.population_count(bits).astype(jnp.int32), axis=-1)
