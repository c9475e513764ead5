"""Only values at random places cross; a seed tells where they stood."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.codecs.finite import count, saturate, within, zero_unless
from splitjax.codecs.grid import HUGE
from splitjax.codecs.rows import Rows, check_keep
from splitjax.core.codec import Codec
from splitjax.core.keys import fold
from splitjax.core.lift import counted
from splitjax.core.message import is_sized
from splitjax.core.noise import uniform


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampled:
    """What crosses for one array.

    Attributes:
      values: `[*rows, k]` in the dtype of the array, in the order of their places;
        `Sized` as the input is. A float leaf: a codec that follows takes it.
      seed: uint32 `[2]`; None when all values cross.
      shape: of the array.
    """

    values: Any
    seed: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def random_k(
    keep: int | float, *, axis: str = "token", unbiased: bool = False
) -> Codec:
    """Sends k values of each row at random places; the others become zero.

    A row is cut into k strata of (nearly) equal length, and one place is drawn in each,
    every one as likely as the others. The places cost 8 bytes for an array: the seed
    crosses, and both ends draw the same.

    NaN, infinity and magnitudes above 2^126 among the values that cross are replaced by
    zero and counted: see `nonfinite`. Padding (by `ctx.mask`) counts as zeros.

    Args:
      keep: k as an int, or as a float the part k / n in (0, 1], rounded, at least 1.
        A row that has no more than k values crosses whole.
      axis: what a row is, as in `top_k`.
      unbiased: multiply what arrives by the length of its stratum, so that its mean
        over keys is x. (It saturates where the dtype ends.) Not within `feedback`,
        whose memory would grow without end.

    Returns:
      A rough codec that needs `ctx.key`; its state is `{"nonfinite": int32}`. Any float
      dtype is restored.

    Raises:
      ValueError: for another axis or a part or count that is none; on use, without a
        key, or when a `Sized` leaf meets axis="all".

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from splitjax.core.codec import Context, wire_bytes
      >>> codec = random_k(2, unbiased=True)
      >>> x = jnp.array([[1.0, 1.0, 5.0, 5.0, 5.0]])
      >>> message, state = codec.encode(x, codec.init(x), Context(jax.random.key(0)))
      >>> sorted(codec.decode(message, state)[0][0].tolist())
      [0.0, 0.0, 0.0, 2.0, 15.0]
      >>> wire_bytes(random_k(0.1), jax.ShapeDtypeStruct((768,), jnp.float32))
      316

    Reference:
      S. U. Stich, J.-B. Cordonnier, M. Jaggi, "Sparsified SGD with Memory", 2018,
      arXiv:1809.07599, the operator rand_k.

    Differs:
      One place is drawn in each stratum, where the paper draws among all sets of k
      places: each place is as likely, neighbors come together less often. The memory is
      `feedback`.
    """
    check_keep("random_k", keep, axis)

    def encode(x, used, ctx, index, constants):
        rows = Rows.of(x.shape, keep, axis, sized=used is not None)
        x = rows.clear(x, used, ctx.mask)[0]
        values, seed = x.reshape(rows.count, rows.n), None
        if rows.k < rows.n:
            key = fold(ctx.key, "random_k", index)
            if key is None:
                raise ValueError("random_k needs a key: Context(key=...)")
            words = jax.random.key_data(key).astype(jnp.uint32)
            seed = jnp.stack([words[0], words[-1]])
            places, _ = _draw(seed, rows)
            values = jnp.take_along_axis(
                values, places, axis=1, mode="promise_in_bounds"
            )
        good = within(values, HUGE)
        values = rows.send(zero_unless(good, values), used)
        return Sampled(values, seed, x.shape), count(~good)

    def decode(node, constants):
        used = node.values.used if is_sized(node.values) else None
        rows = Rows.of(node.shape, keep, axis, sized=used is not None)
        values = rows.receive(node.values)
        if rows.k < rows.n:
            places, length = _draw(node.seed, rows)
            if unbiased:
                scaled = values.astype(jnp.float32) * length[None]
                values = saturate(scaled, values.dtype)
            row = jnp.arange(rows.count)[:, None]
            empty = jnp.zeros((rows.count, rows.n), values.dtype)
            values = empty.at[row, places].set(values, mode="drop")
        return rows.merge(values, used)

    name = f"random_k({keep},{axis}{',unbiased' if unbiased else ''})"
    codec = counted(encode, decode, name=name)
    return dataclasses.replace(codec, exact=not unbiased)


def _draw(seed: jax.Array, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Places int32 `[rows, k]`, increasing, and the lengths float32 `[k]` of strata."""
    short, longer = divmod(rows.n, rows.k)
    stratum = jax.lax.iota(jnp.int32, rows.k)
    extra = stratum - (rows.k - longer)  # the last ones have one place more
    length = short + (extra >= 0).astype(jnp.int32)
    start = stratum * short + jnp.maximum(extra, 0)
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    chance = uniform(key, (rows.count, rows.k))
    within = (chance * length.astype(jnp.float32)[None]).astype(jnp.int32)
    places = start[None] + jnp.minimum(within, length[None] - 1)
    return places, length.astype(jnp.float32)
