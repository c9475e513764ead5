"""Floats cross within a bound, in as many bits as were decided beforehand."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.codecs.grid import HUGE, TINY, extent, round_up
from splitjax.codecs.layout import first_rows
from splitjax.codecs.outliers import Outliers, put_back, take_out, words_of
from splitjax.codecs.pack import pack_bits, unpack_bits
from splitjax.codecs.tolerance import LARGEST, as_bound, on_grid, step_of, values_of
from splitjax.core.codec import Codec
from splitjax.core.lift import counted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fixed:
    """What crosses for one array.

    Attributes:
      step: uint32 `[1]`, the bits of a float32.
      low: int32 `[1]`, the number that code 0 stands for.
      codes: uint8, packed.
      outliers: what the codes cannot hold.
      rows: int32 `[1]`, the used rows of a `Sized` input, else None.
      shape: of the array.
      dtype: of the array.
    """

    step: Any
    low: Any
    codes: Any
    outliers: Outliers
    rows: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})


def fixed_width(eb: float | jax.Array, bits: int, *, outliers: float = 1 / 64) -> Codec:
    """Sends floats within a bound in a fixed number of bits, and says when it cannot.

    As `bounded`, but every value takes `bits` bits, so that the message is as small in
    memory as on a wire: for what a backward pass keeps. The codes reach from the least
    value on, where all fit, and else around zero; values out of reach cross as they
    are, with their places.

    Where those are too many for their buffer the whole array is rounded to a coarser
    grid that reaches over all of it. Then the bound does not hold, and how many values
    are off by more is counted: `missed` in the state. More bits, or a larger bound,
    make it zero again. Non-finite values are outliers, or, where there are too many,
    zeros.

    Args:
      eb: the bound, as `bounded` takes it; it may be traced.
      bits: 2 to 8 for each value.
      outliers: the share of values that the buffer of outliers has room for.

    Returns:
      A rough codec; its state is `{"nonfinite", "missed"}`, int32.

    Raises:
      ValueError: for an argument that is none of these, and on use for float64.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from splitjax.core.codec import Context, wire_bytes
      >>> x = jax.nn.relu(jax.random.normal(jax.random.key(0), (64, 64)))
      >>> codec = fixed_width(0.15, 4)
      >>> message, state = codec.encode(x, codec.init(x), Context())
      >>> y, _ = codec.decode(message, state)
      >>> bool((jnp.abs(x - y) <= 0.15).all()), int(state["missed"])
      (True, 0)
      >>> x.nbytes, wire_bytes(codec, x)
      (16384, 2568)

    Reference:
      As `bounded`.

    Differs:
      No entropy coder and no predictor: a program's memory is decided before it runs.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"fixed_width(bits={bits}): bits must be 2 to 8")
    if not 0 <= outliers <= 1:
        raise ValueError(f"fixed_width(outliers={outliers}): a share is from 0 to 1")
    given = as_bound(eb, "fixed_width")
    levels = 2**bits - 1

    def encode(x, used, ctx, index, constants):
        if x.dtype.itemsize > 4:
            raise ValueError(f"fixed_width takes floats of up to 32 bits: {x.dtype}")
        capacity = math.ceil(x.size * outliers)
        flat = x.reshape(-1)
        bound = jnp.asarray(given, jnp.float32)
        fine = _grid(flat, bound, levels)
        wide = flat.astype(jnp.float32)
        good = jnp.abs(wide) <= HUGE

        def coarse(flat, fine):
            ends = extent(wide, 0, valid=good)
            step = round_up((ends[1] - ends[0])[0] * jnp.float32(1 / (levels - 1)))
            step = jnp.maximum(step, TINY)
            low = jnp.floor(ends[0][0] / step)
            code = jnp.round(jnp.where(good, wide, 0.0) / step) - low
            code = jnp.clip(code, 0, levels)
            back = values_of((code + low).astype(jnp.int32), step)
            back = _narrow(back, x.dtype)
            off = ~(jnp.abs(wide - back.astype(jnp.float32)) <= bound)
            missed = jnp.sum(good & off, dtype=jnp.int32)
            return step, low.astype(jnp.int32), code.astype(jnp.uint8), ~good, missed

        sound = (bound >= TINY) & (bound <= LARGEST)
        fits = sound & (jnp.sum(fine[3], dtype=jnp.int32) <= capacity)
        fine = jax.lax.cond(fits, lambda flat, fine: fine, coarse, flat, fine)
        step, low, codes, out, missed = fine
        taken, _ = take_out(flat, out, capacity)
        bad = jnp.sum(~jnp.isfinite(x), dtype=jnp.int32)
        missed += jnp.where(jnp.sum(out, dtype=jnp.int32) > capacity, bad, 0)
        node = Fixed(
            words_of(step.reshape(1)),
            low.reshape(1),
            pack_bits(codes, bits),
            taken,
            None if used is None else used.reshape(1),
            x.shape,
            x.dtype.name,
        )
        return node, bad, missed

    def decode(node, constants):
        count, dtype = math.prod(node.shape), jnp.dtype(node.dtype)
        step = jax.lax.bitcast_convert_type(node.step, jnp.float32)
        codes = unpack_bits(node.codes, bits, count).astype(jnp.int32) + node.low
        x = _narrow(values_of(codes, step), dtype)
        x = put_back(x, node.outliers).reshape(node.shape)
        return x if node.rows is None else first_rows(x, node.rows[0])

    shown = "traced" if isinstance(eb, jax.Array) else f"{eb:g}"
    name = f"fixed_width({shown},{bits})"
    return counted(encode, decode, more=("missed",), name=name)


def _narrow(x: jax.Array, dtype: Any) -> jax.Array:
    """The last point of a coarse grid may lie beyond the last number of a dtype."""
    top = float(jnp.finfo(dtype).max)
    return (jnp.clip(x, -top, top) if top < HUGE else x).astype(dtype)


def _grid(flat: jax.Array, bound: jax.Array, levels: int):
    """Step, lowest number, codes, what they cannot hold, and no value that is off."""
    step = step_of(bound)
    numbers, bad = on_grid(flat, step, bound)
    most = jnp.int32(2**30)
    low = jnp.min(jnp.where(bad, most, numbers), initial=most)
    top = jnp.max(jnp.where(bad, -most, numbers), initial=-most)
    low, top = jnp.where(low > top, 0, low), jnp.where(low > top, 0, top)
    around = jnp.maximum(low, -(levels // 2))
    low = jnp.where(top - low <= levels, low, around)
    codes = numbers - low
    bad |= (codes < 0) | (codes > levels)
    codes = jnp.where(bad, 0, codes).astype(jnp.uint8)
    return step, low, codes, bad, jnp.int32(0)
