"""Activations cross as their coordinates in a basis that follows them."""

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

FIRST_STEPS = 3  # of the power iteration on the first message


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Projected:
    """What crosses for one array.

    Attributes:
      codes: `[..., R]` in the dtype of the array, `Sized` as the input is. A float
        leaf: a codec that follows takes it. The array itself, where there is no basis.
      basis: uint8 `[D, 4 R]`, the bytes of a float32 `[D, R]`, `Sized` with D rows
        when the basis is new and none otherwise; None where there is none.
    """

    codes: Any
    basis: Any


def projection(rank: int, *, every: int = 0) -> Codec:
    """Sends each row of the last axis as its coordinates in R directions.

    `y = x V`, `x' = y V^T`, with V `[D, R]` orthonormal. V comes near the principal
    directions (those of the second moment: no mean is taken off): the first message
    makes it by a power iteration on its own rows, and each refresh makes one more step,
    `V = orthonormal(sum x^T (x V))` over the messages since the last. The sender alone
    does this. A new V crosses with its message, as bytes that no codec after this one
    touches, so both ends hold the same; a message without costs none.

    It is no `factors.low_rank`: nothing is trained, and the gradient passes straight
    through, in D values of a token, to its own codec.

    NaN, infinity and magnitudes above 2^126 are replaced by zero and counted: see
    `nonfinite`. So does padding, uncounted: it does not weigh in V.

    Args:
      rank: R, how many values of D cross. Leaves with D <= R, and vectors, cross whole.
      every: messages from one refresh to the next; 0 for none after the first message
        with anything in it. (Under vmap all lanes compute as if they refreshed.)

    Returns:
      A rough codec. Its state holds for each leaf the basis, the running sum and the
      number of the message. One state serves any number of rows. Any float dtype is
      restored; products are float32.

    Raises:
      ValueError: for a rank below 1 or a negative `every`; on use, when the last axis
        has another length than the state was made for, or there are other leaves.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from splitjax.core.codec import Context, wire_bytes
      >>> codec = projection(1)
      >>> x = jnp.array([[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0]])
      >>> message, state = codec.encode(x, codec.init(x), Context())
      >>> bool(jnp.allclose(codec.decode(message, state)[0], x))
      True
      >>> message, state = codec.encode(x, state, Context())
      >>> int(message.node.basis.used)
      0

    Reference:
      N. Halko, P.-G. Martinsson, J. A. Tropp, "Finding Structure with Randomness",
      2009, arXiv:0909.4061 (subspace iteration).

    Differs:
      One step of the iteration for each refresh, on all messages since the last one.
      Messages are scaled by a power of two before they are summed, so that each weighs
      by its own shape and not by its size.
    """
    if rank < 1:
        raise ValueError(f"projection(rank={rank}): at least 1 direction is needed")
    if every < 0:
        raise ValueError(f"projection(every={every}): 0 for never, or messages")

    def has_basis(shape):
        return len(shape) > 1 and shape[-1] > rank and math.prod(shape) > 0

    def init(spec, sized):
        if not has_basis(spec.shape):
            return {}
        empty = jnp.zeros((spec.shape[-1], rank))
        return {"basis": empty, "sum": empty, "step": jnp.int32(0)}

    def encode(x, used, ctx, state):
        rows, bad = clear(x, used, ctx.mask)
        _check(x, state, has_basis(x.shape))
        if not state:
            rows = rows.astype(x.dtype)
            rows = rows if used is None else Sized(rows, used)
            return Projected(rows, None), state, bad
        depth = x.shape[-1]
        rows, scale = unit(rows.reshape(-1, depth))
        step, total, basis = state["step"], state["sum"], state["basis"]

        def moved(basis):
            return multiply(rows.T, multiply(rows, basis))

        def first(_):
            basis = orthonormal(start((depth, rank)))
            turn = lambda _, basis: orthonormal(moved(basis))  # noqa: E731
            return jax.lax.fori_loop(0, FIRST_STEPS, turn, basis)

        def fresh(_):
            return jax.lax.cond(step == 0, first, lambda _: orthonormal(total), None)

        is_new = step == 0
        if every:
            is_new |= step % every == 0
        basis = jax.lax.cond(is_new, fresh, lambda _: basis, None)
        codes = multiply(rows, basis)
        if every:
            total = jnp.where(is_new, jnp.zeros_like(total), total)
            total = total + multiply(rows.T, codes)
        # Until something has crossed, the next message is the first one again.
        step = step + jnp.any(rows != 0).astype(jnp.int32)
        new = {"basis": basis, "sum": total, "step": step}
        codes = rescaled(codes, scale, x.dtype).reshape(*x.shape[:-1], rank)
        sent = jax.lax.bitcast_convert_type(basis, jnp.uint8).reshape(depth, 4 * rank)
        sent = first_rows(sent, jnp.where(is_new, depth, 0).astype(jnp.int32))
        codes = codes if used is None else first_rows(codes, used)
        return Projected(codes, sent), new, bad

    def decode(node, state):
        if node.basis is None:
            return node.codes, state
        codes, used = node.codes, None
        if is_sized(codes):
            codes, used = codes.buffer, codes.used
        depth = node.basis.buffer.shape[0]
        sent = node.basis.buffer.reshape(depth, rank, 4)
        sent = jax.lax.bitcast_convert_type(sent, jnp.float32)
        basis = jnp.where(node.basis.used == depth, sent, state["basis"])
        rows, scale = unit(codes.reshape(-1, rank).astype(jnp.float32))
        x = rescaled(multiply(rows, basis.T), scale, codes.dtype)
        x = x.reshape(*codes.shape[:-1], depth)
        return x if used is None else first_rows(x, used), {**state, "basis": basis}

    name = f"projection({rank}{f',every={every}' if every else ''})"
    return remembering(init, encode, decode, name=name)


def _check(x: jax.Array, state: dict, needed: bool) -> None:
    depth = state["basis"].shape[0] if state else None
    if needed != bool(state) or (needed and depth != x.shape[-1]):
        made = f"a last axis of {depth}" if state else "an array without a basis"
        raise ValueError(
            f"projection was made for {made} and got the shape {list(x.shape)}: make "
            "another state with init(spec)"
        )
