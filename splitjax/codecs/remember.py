"""In what format a row is remembered, so that two ends remember equal bits."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from splitjax.codecs.grid import Grid, fit, values
from splitjax.codecs.pack import pack_bits, unpack_bits
from splitjax.core.memory import Memory
from splitjax.core.tree import nearest

FORMATS = ("f32", "f16", "int8", "int4")
TOP_F16 = 65504.0


class Format(NamedTuple):
    """How a float32 array is kept, and read again.

    Every operation is exact or correctly rounded (a scale is a power of two), so unlike
    devices keep equal bits.

    Attributes:
      keep: float32 `[..., D]` to a tuple of arrays with the same leading axes.
      recall: the way back; needs D. A vector's D is 1.
    """

    keep: Callable[[jax.Array], tuple[jax.Array, ...]]
    recall: Callable[[tuple[jax.Array, ...], int], jax.Array]


def format_of(name: str) -> Format:
    """A format by name: "f32", "f16" (saturates), "int8" or "int4".

    The last two have a grid of their own for each row of the last axis, symmetric, with
    a power of two for its step: 1 or 1/2 byte a value and 1 a row.

    Raises:
      ValueError: for another name.

    Example:
      >>> import jax.numpy as jnp
      >>> kept = format_of("int4").keep(jnp.array([[1.0, -7.0, 3.0]]))
      >>> [(a.shape, str(a.dtype)) for a in kept]
      [((1, 2), 'uint8'), ((1, 1), 'int8')]
      >>> format_of("int4").recall(kept, 3).tolist()
      [[1.0, -7.0, 3.0]]
    """
    if name not in FORMATS:
        raise ValueError(f"a memory has no format {name!r}: {nearest(name, FORMATS)}")
    if name == "f32":
        return Format(lambda x: (x,), lambda kept, width: kept[0])
    if name == "f16":
        return Format(_half, lambda kept, width: kept[0].astype(jnp.float32))
    bits = int(name[3:])
    levels = 2 ** (bits - 1) - 1

    def keep(x):
        top = jnp.max(jnp.abs(x), -1, keepdims=True, initial=0.0)
        grid = fit((-top, top), levels, affine=False, power_of_two=True)
        step, _ = values(grid)
        place = jnp.clip(jnp.round(x / step), -levels, levels).astype(jnp.int32)
        # In two's complement: a row of zeros is kept as zeros, as padding is.
        codes = (place & (2**bits - 1)).astype(jnp.uint8)
        exponent = jnp.where(top > 0, grid.step, jnp.zeros_like(grid.step))
        return pack_bits(codes, bits), exponent

    def recall(kept, width):
        codes, exponent = kept
        codes = unpack_bits(codes, bits, width).astype(jnp.int32)
        codes = (codes ^ (levels + 1)) - (levels + 1)
        return codes.astype(jnp.float32) * values(Grid(exponent, None))[0]

    return Format(keep, recall)


def _half(x: jax.Array) -> tuple[jax.Array]:
    # A cast there and back is a pair that XLA may leave out; this it may not.
    x = jax.lax.reduce_precision(jnp.clip(x, -TOP_F16, TOP_F16), 5, 10)
    return (x.astype(jnp.float16),)


def remembered(
    kind: Format, values: list[jax.Array], tokens: list[bool], count: int
) -> Memory:
    """A memory of arrays, one after the other; nothing is marked as seen.

    Args:
      kind: how they are kept.
      values: float32 `[B, ..., D]`.
      tokens: for each whether its second axis is tokens.
      count: of examples, B.

    Example:
      >>> import jax.numpy as jnp
      >>> values = [jnp.zeros((2, 3))]
      >>> remembered(format_of("f32"), values, [False], 2).seen.tolist()
      [False, False]
    """
    kept = [kind.keep(value) for value in values]
    arrays = tuple(array for parts in kept for array in parts)
    which = tuple(t for parts, t in zip(kept, tokens, strict=True) for _ in parts)
    return Memory(
        rows=arrays,
        lengths=jnp.zeros((count,), jnp.int32),
        seen=jnp.zeros((count,), bool),
        visits=jnp.zeros((count,), jnp.int32),
        tokens=which,
    )


def recalled(
    kind: Format, memory: Memory, shapes: list[tuple[int, ...]], count: int
) -> list[jax.Array]:
    """Undoes `remembered`: float32 arrays of the given shapes.

    Raises:
      ValueError: for a memory that a driver has taken out, or one of other shapes.
    """
    if memory.is_blank:
        raise ValueError(
            "this state's memory was taken out, and not filled in for this batch: a "
            "driver does both (`core.memory.fill`)"
        )
    want = [jax.eval_shape(kind.keep, _spec(shape)) for shape in shapes]
    found = [tuple(a.shape) for a in memory.rows]
    expected = [tuple(a.shape) for parts in want for a in parts]
    if found != expected or memory.seen.shape != (count,):
        raise ValueError(
            f"the state is for {memory.seen.shape[0]} examples and rows of shape "
            f"{found}; this batch has {count} and shape {expected}: make its state "
            "with init(spec)"
        )
    left = iter(memory.rows)
    out = []
    for parts, shape in zip(want, shapes, strict=True):
        out.append(kind.recall(tuple(next(left) for _ in parts), shape[-1]))
    return out


def _spec(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
