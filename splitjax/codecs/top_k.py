"""Only the values of largest magnitude cross, and where they stood."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.codecs.finite import within, zero_unless
from splitjax.codecs.grid import HUGE
from splitjax.codecs.indices import index_bytes, read_indices, write_indices
from splitjax.codecs.rows import Rows, check_keep
from splitjax.codecs.select import largest
from splitjax.core.codec import Codec
from splitjax.core.lift import counted
from splitjax.core.message import is_sized


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sparse:
    """What crosses for one array.

    Attributes:
      values: `[*rows, k]` in the dtype of the array, in the order of their places;
        `Sized` as the input is. A float leaf: a codec that follows takes it.
      places: uint8 `[*rows, bytes]`; see `write_indices`.
      shape: of the array.
    """

    values: Any
    places: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def top_k(keep: int | float, *, axis: str = "token") -> Codec:
    """Sends the k values of largest magnitude of each row; the others become zero.

    Exactly k of n values cross, as they are: of equal magnitudes the first ones. With
    them go their places, as a bitmap (n bits) or by gaps (about `k * (2 + log2(n / k))`
    bits), whichever is shorter.

    No vector of k values is nearer to x. It is a biased choice all the same: for
    gradients wrap it in `feedback`.

    NaN, infinity and magnitudes above 2^126 are replaced by zero and counted: see
    `nonfinite`. Padding (by `ctx.mask`) counts as zeros.

    Args:
      keep: k as an int, or as a float the part k / n in (0, 1], rounded, at least 1.
        A row that has no more than k values crosses whole.
      axis: what a row is: "token" the last axis, "example" all of one index on the
        first axis, "all" the whole array (not for `Sized` leaves).

    Returns:
      A rough codec; its state is `{"nonfinite": int32}`. Any float dtype is restored.
      `chain(top_k(0.1), quantize(8))` quantizes the values that are kept.

    Raises:
      ValueError: for another axis or a part or count that is none; on use, when a
        `Sized` leaf meets axis="all".

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from splitjax.core.codec import Context, wire_bytes
      >>> codec = top_k(2)
      >>> x = jnp.array([[0.5, -3.0, 1.0, 2.0]])
      >>> message, state = codec.encode(x, codec.init(x), Context())
      >>> codec.decode(message, state)[0].tolist()
      [[0.0, -3.0, 0.0, 2.0]]
      >>> wire_bytes(top_k(0.1), jax.ShapeDtypeStruct((768,), jnp.float32))
      359

    Reference:
      A. F. Aji, K. Heafield, "Sparse Communication for Distributed Gradient Descent",
      2017, arXiv:1704.05021.

    Differs:
      No memory of what was dropped: that is `feedback`. Exactly k values, where the
      paper has a threshold.
    """
    check_keep("top_k", keep, axis)

    def encode(x, used, ctx, index, constants):
        rows = Rows.of(x.shape, keep, axis, sized=used is not None)
        x, bad = rows.clear(x, used, ctx.mask)
        values = x.reshape(rows.count, rows.n)
        code = jnp.zeros((rows.count, index_bytes(rows.n, rows.k)), jnp.uint8)
        if rows.k < rows.n and values.size:
            places = largest(x, rows.k, rows=rows.count)
            values = jnp.take_along_axis(
                values, places, axis=1, mode="promise_in_bounds"
            )
            code = write_indices(places, rows.n)
        values = zero_unless(within(values, HUGE), values)
        return Sparse(rows.send(values, used), rows.send(code, used), x.shape), bad

    def decode(node, constants):
        used = node.values.used if is_sized(node.values) else None
        rows = Rows.of(node.shape, keep, axis, sized=used is not None)
        values = rows.receive(node.values)
        if rows.k < rows.n and values.size:
            places = read_indices(rows.receive(node.places), rows.n, rows.k)
            row = jnp.arange(values.shape[0])[:, None]
            empty = jnp.zeros((values.shape[0], rows.n), values.dtype)
            values = empty.at[row, places].set(values, mode="drop")
        return rows.merge(values, used)

    codec = counted(encode, decode, name=f"top_k({keep},{axis})")
    return dataclasses.replace(codec, exact=True)
