"""Floats cross with an error that no single value exceeds."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.codecs.grid import HUGE, TINY, extent
from splitjax.codecs.layout import first_rows
from splitjax.codecs.outliers import Outliers, put_back, take_out, words_of
from splitjax.codecs.planes import (
    pack_blocks,
    pack_whole,
    unpack_blocks,
    unpack_whole,
)
from splitjax.codecs.tolerance import LARGEST, as_bound, on_grid, step_of, values_of
from splitjax.core.codec import Codec
from splitjax.core.lift import counted
from splitjax.core.message import Sized
from splitjax.core.tree import nearest

PREDICTORS = {"none": (), "lorenzo1d": (-1,), "lorenzo2d": (-2, -1)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bounded:
    """What crosses for one array.

    Attributes:
      scale: uint32 `[1]`, the bits of a float32: the step; where the body is empty, the
        value that all have.
      widths: `Sized` uint8, one for each block; None without blocks.
      body: `Sized` uint8: packed numbers; or the array's own bytes, when it is as long.
      outliers: what the grid cannot hold.
      rows: int32 `[1]`, the used rows of a `Sized` input, else None.
      shape: of the array.
      dtype: of the array.
    """

    scale: Any
    widths: Any
    body: Any
    outliers: Outliers
    rows: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})


def bounded(
    eb: float | jax.Array,
    relative: bool = False,
    predictor: str = "none",
    *,
    block: int | None = 32,
    outliers: float = 1 / 128,
) -> Codec:
    """Sends floats so that `|x - x'| <= eb` holds for every one of them.

    `q = round(x / step)` with a step just below 2 eb, whole numbers from there on, and
    `x' = q * step`. What the decoder will make is compared with x, in x's own dtype:
    where it is further off (also by rounding), and where x is not finite or above
    2^126, x crosses as it is, with its place. Zeros stay zeros. An array that would not
    get shorter, or that has too many such values, crosses as its own bytes: never more
    than 4 bytes longer than it was.

    Non-finite values arrive as they are, and are counted (`nonfinite`): they are bits
    here, which a frame's check for non-finite values does not see. Padding (`ctx.mask`)
    becomes zero.

    Args:
      eb: the bound, from 2^-99 to 2^110, or a float32 scalar array, which may be
        traced (outside that range, then, the array crosses as it is).
      relative: whether the bound is eb times the range (greatest less least value) of
        each array.
      predictor: "none"; "lorenzo1d" sends differences along the last axis, "lorenzo2d"
        along the last two. They pay on smooth fields; on activations of transformers
        they cost (measured).
      block: how many neighbors share a width, a multiple of 8: a block of zeros takes
        one byte. None: whole bytes, the same count for all values, for `lossless`.
      outliers: the largest share of values that may cross as they are.

    Returns:
      A rough codec; its state is `{"nonfinite", "raw"}`, int32: how many values were
      not finite, and how many arrays crossed as they were.

    Raises:
      ValueError: for an argument that is none of these, and on use for float64.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from splitjax.core.codec import Context
      >>> codec = bounded(0.01)
      >>> x = jnp.linspace(-1, 1, 256)
      >>> message, state = codec.encode(x, codec.init(x), Context())
      >>> y, _ = codec.decode(message, state)
      >>> bool((jnp.abs(x - y) <= 0.01).all()), int(message.node.body.used)
      (True, 184)

    Reference:
      S. Jin et al., "COMET: A Novel Memory-Efficient Deep Learning Training Framework
      by Using Error-Bounded Lossy Compression", 2021, arXiv:2111.09562; blocks of one
      width after Y. Huang et al., "cuSZp: An Ultra-fast GPU Error-bounded Lossy
      Compression Framework", 2023.

    Differs:
      No Huffman coder here: `chain(bounded(eb, block=None), lossless())` has one. The
      predictor is off by default. The bound holds after rounding, too. Where no value
      of a block is negative, no sign is sent.
    """
    _check(eb, relative, predictor, block, outliers)
    axes = PREDICTORS[predictor]
    given = as_bound(eb, "bounded")

    def encode(x, used, ctx, index, constants):
        if x.dtype.itemsize > 4:
            raise ValueError(f"bounded takes floats of up to 32 bits, not {x.dtype}")
        if used is None and ctx.mask is not None:
            if x.shape[: ctx.mask.ndim] == ctx.mask.shape:
                mask = jnp.expand_dims(ctx.mask, tuple(range(ctx.mask.ndim, x.ndim)))
                x = jnp.where(mask, x, jnp.zeros_like(x))
        bound = _bound(x, given, relative)
        step = step_of(bound)
        numbers, bad = on_grid(x, step, bound)
        out, count = take_out(x.reshape(-1), bad.reshape(-1), _capacity(x, outliers))
        for axis in _axes(axes, x):
            numbers -= _shifted(numbers, axis)
        numbers = numbers.reshape(-1)
        widths = None
        if block is None:
            body, packed_bytes = pack_whole(numbers, x.nbytes)
            more = 0
        else:
            widths, body, packed_bytes = pack_blocks(numbers, block, x.nbytes)
            more = jax.lax.iota(jnp.int32, widths.size) + 1
            more = jnp.max(jnp.where(widths > 0, more, 0), initial=0)
        rows = x.shape[0] if used is not None else 1
        raw_bytes = jnp.int32(x.nbytes)
        if used is not None:
            raw_bytes = used * (x.nbytes // max(1, rows))
        total = packed_bytes + more + count * (4 + x.dtype.itemsize)
        words = words_of(x).reshape(-1)
        first = jnp.pad(words, (0, 1))[:1]
        alike = jnp.all(words == first)
        valid = (bound >= TINY) & (bound <= LARGEST)
        fits = valid & (count <= _capacity(x, outliers)) & (total < raw_bytes)
        raw, coded = ~alike & ~fits, ~alike & fits
        length = jnp.where(coded, packed_bytes, jnp.where(raw, raw_bytes, 0))

        # Bytes past the end are zero: the array's own are, in rows that are not used.
        def own(x, body):
            return jax.lax.bitcast_convert_type(x.reshape(-1), jnp.uint8).reshape(-1)

        def packed(x, body):
            return jnp.where(coded, body, 0)

        body = jax.lax.cond(raw, own, packed, x, body)
        step = jnp.where(packed_bytes > 0, step, 0.0)
        value = jax.lax.bitcast_convert_type(first, x.dtype).astype(jnp.float32)
        scale = words_of(jnp.where(alike, value, step[None]))
        if widths is not None:
            widths = first_rows(widths, jnp.where(coded, more, 0))
        out = jax.tree.map(lambda a: jnp.where(coded, a, 0), out)
        rows = None if used is None else used.reshape(1)
        node = Bounded(
            scale, widths, Sized(body, length), out, rows, x.shape, x.dtype.name
        )
        return node, jnp.sum(~jnp.isfinite(x), dtype=jnp.int32), raw.astype(jnp.int32)

    def decode(node, constants):
        count, dtype = math.prod(node.shape), jnp.dtype(node.dtype)
        body, length = node.body.buffer, node.body.used
        scale = jax.lax.bitcast_convert_type(node.scale, jnp.float32)
        raw_bytes = jnp.int32(body.size)
        if node.rows is not None:
            raw_bytes = node.rows[0] * (body.size // max(1, node.shape[0]))

        def own(node):
            parts = body if dtype.itemsize == 1 else body.reshape(count, dtype.itemsize)
            return jax.lax.bitcast_convert_type(parts, dtype).reshape(-1)

        def packed(node):
            if block is None:
                numbers = unpack_whole(body, count)
            else:
                numbers = unpack_blocks(node.widths.buffer, body, count, block)
            numbers = numbers.reshape(node.shape)
            for axis in _axes(axes, numbers):
                numbers = jnp.cumsum(numbers, axis, dtype=jnp.int32)
            x = values_of(numbers.reshape(-1), scale).astype(dtype)
            x = jnp.where(length > 0, x, scale.astype(dtype))
            return put_back(x, node.outliers)

        is_own = (length == raw_bytes) & (length > 0)
        x = jax.lax.cond(is_own, own, packed, node).reshape(node.shape)
        return x if node.rows is None else first_rows(x, node.rows[0])

    shown = "traced" if isinstance(eb, jax.Array) else f"{eb:g}"
    name = f"bounded({shown},{'relative,' if relative else ''}{predictor},{block})"
    return counted(encode, decode, more=("raw",), name=name)


def _bound(x: jax.Array, given: jax.Array | float, relative: bool) -> jax.Array:
    given = jnp.asarray(given, jnp.float32)
    if not relative:
        return given
    flat = x.reshape(-1).astype(jnp.float32)
    low, top = extent(flat, 0, valid=jnp.abs(flat) <= HUGE)
    # A little less, for the roundings of this product.
    return jnp.minimum(given * (top - low)[0] * jnp.float32(1 - 2.0**-20), LARGEST)


def _axes(axes: tuple[int, ...], x: jax.Array) -> list[int]:
    return [axis for axis in axes if -axis <= x.ndim]


def _shifted(numbers: jax.Array, axis: int) -> jax.Array:
    """Each number's neighbor before it; 0 before the first."""
    size = numbers.shape[axis]
    if not size:
        return numbers
    widths = [(0, 0)] * numbers.ndim
    widths[axis] = (1, 0)
    return jax.lax.slice_in_dim(jnp.pad(numbers, widths), 0, size, axis=axis)


def _capacity(x: jax.Array, share: float) -> int:
    return math.ceil(x.size * share)


def _check(eb, relative, predictor, block, outliers) -> None:
    if predictor not in PREDICTORS:
        near = nearest(predictor, tuple(PREDICTORS))
        raise ValueError(f"bounded has no predictor={predictor!r}: {near}")
    if block is not None and (block < 8 or block % 8):
        raise ValueError(f"bounded(block={block}): a multiple of 8, or None")
    if not 0 <= outliers <= 1:
        raise ValueError(f"bounded(outliers={outliers}): a share is from 0 to 1")
    if relative and not isinstance(eb, jax.Array) and not 2.0**-23 <= eb <= 1:
        raise ValueError(f"bounded(eb={eb}, relative=True): a share from 2^-23 to 1")
