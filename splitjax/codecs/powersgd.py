"""Gradients of matrices cross as the two factors of one of low rank."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.codecs.layout import first_rows
from splitjax.codecs.subspace import clear, multiply, orthonormal, rescaled, start, unit
from splitjax.core.codec import Codec
from splitjax.core.lift import remembering
from splitjax.core.message import Sized, is_sized


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outer:
    """What crosses for one array `[..., n, m]`.

    Attributes:
      left: `[..., n, R]`, orthonormal columns, `Sized` as the input is; the array
        itself, where that is shorter.
      right: `[..., m, R]`; None where the array itself crosses.
      shape: of the array.
    """

    left: Any
    right: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def powersgd(rank: int, *, flatten: bool = False) -> Codec:
    """Sends a matrix M as P Q^T of rank R, by one step of a power iteration.

    `P = orthonormal(M Q)` with the Q of the last message, `Q = M^T P`, and both cross.
    The Q of one gradient is a good start for the next, so a small R is enough; what is
    lost belongs in error feedback: `feedback(powersgd(2))` is the paper's algorithm.
    Exact for a matrix of rank R or less. Only the sender makes P orthonormal, the
    receiver multiplies.

    NaN, infinity and magnitudes above 2^126 are replaced by zero and counted: see
    `nonfinite`. Padding (by `ctx.mask`) counts as zeros.

    Args:
      rank: R, values that cross for a row or a column.
      flatten: take all axes but the last as rows (convolutions `[H, W, I, O]`, or
        `[B, T, D]`); otherwise the last two axes are a matrix and those before count
        matrices (layers, experts). A `Sized` leaf is always taken flat.

    Returns:
      A rough codec; its state holds Q for each leaf. Vectors, and matrices that P and Q
      would not shorten, cross as they are. Any float dtype is restored; products are
      float32.

    Raises:
      ValueError: for a rank below 1; on use, for other shapes than those of init. (The
        number of rows may change, where the axes are flat.)

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from splitjax.core.codec import Context, wire_bytes
      >>> codec, g = powersgd(1), jnp.outer(jnp.arange(4.0), jnp.array([1.0, -1, 2]))
      >>> message, state = codec.encode(g, codec.init(g), Context())
      >>> bool(jnp.allclose(codec.decode(message, state)[0], g, atol=1e-5))
      True
      >>> wire_bytes(powersgd(2), jax.ShapeDtypeStruct((768, 3072), jnp.float32))
      30720

    Reference:
      T. Vogels, S. P. Karimireddy, M. Jaggi, "PowerSGD: Practical Low-Rank Gradient
      Compression for Distributed Optimization", 2019, arXiv:1905.13727, algorithm 1.

    Differs:
      P and Q are of one worker, for one receiver: the paper sums both over the workers,
      so that all of them share P. P is made orthonormal by Householder reflections
      instead of Gram-Schmidt.
    """
    if rank < 1:
        raise ValueError(f"powersgd(rank={rank}): at least 1 is needed")

    def matrix(shape, sized):
        """The array as matrices, or None where it crosses as it is."""
        if len(shape) < 2:
            return None
        flat = sized or flatten
        rows = math.prod(shape[:-1]) if flat else shape[-2]
        short = rank * (rows + shape[-1]) < rows * shape[-1]
        return (*([] if flat else shape[:-2]), rows, shape[-1]) if short else None

    def init(spec, sized):
        shape = matrix(spec.shape, sized)
        if shape is None:
            return {}
        return {"right": start((*shape[:-2], shape[-1], rank))}

    def encode(x, used, ctx, state):
        shape = matrix(x.shape, used is not None)
        _check(x, shape, state)
        rows, bad = clear(x, used, ctx.mask)
        if shape is None:
            rows = rows.astype(x.dtype)
            rows = rows if used is None else Sized(rows, used)
            return Outer(rows, None, x.shape), state, bad
        m, scale = unit(rows.reshape(shape))
        left = orthonormal(multiply(m, state["right"]))
        right = multiply(jnp.swapaxes(m, -1, -2), left)
        state = {"right": jnp.where(jnp.any(right != 0), right, state["right"])}
        right = rescaled(right, scale, x.dtype)
        left = left.astype(x.dtype).reshape(*x.shape[:-1], rank)
        left = left if used is None else first_rows(left, used)
        return Outer(left, right, x.shape), state, bad

    def decode(node, state):
        if node.right is None:
            return node.left, state
        left, used = node.left, None
        if is_sized(left):
            left, used = left.buffer, left.used
        right, scale = unit(node.right.astype(jnp.float32))
        left = left.reshape(*right.shape[:-2], -1, rank).astype(jnp.float32)
        x = multiply(left, jnp.swapaxes(right, -1, -2))
        x = rescaled(x, scale, node.right.dtype).reshape(node.shape)
        return x if used is None else first_rows(x, used), state

    name = f"powersgd({rank}{',flatten' if flatten else ''})"
    return remembering(init, encode, decode, name=name)


def _check(x: jax.Array, shape: tuple[int, ...] | None, state: dict) -> None:
    made = state["right"].shape[:-1] if state else None
    if made != (None if shape is None else (*shape[:-2], shape[-1])):
        raise ValueError(
            f"powersgd was made for matrices with columns {made} and got the shape "
            f"{list(x.shape)}: make another state with init(spec)"
        )
