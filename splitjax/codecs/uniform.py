"""Floats cross as whole multiples of one step: what an entropy coder does best with."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.codecs.finite import count, real, within, zero_unless
from splitjax.codecs.grid import HUGE, TINY
from splitjax.codecs.layout import first_rows
from splitjax.core import noise
from splitjax.core.codec import Codec
from splitjax.core.keys import fold
from splitjax.core.lift import counted
from splitjax.core.message import is_sized
from splitjax.core.tree import nearest

LEAST, MOST = 2.0**-40, 2.0**40  # of a step
TOP = 2**15 - 1  # of a code
ROUNDINGS = ("nearest", "stochastic")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Uniform:
    """What crosses for one array.

    Attributes:
      codes: int16 `[...]`, `Sized` as the array is.
      step: bfloat16 `[1]`, where it is relative; else None.
      dtype: of the array.
    """

    codes: Any
    step: Any
    dtype: str = dataclasses.field(metadata={"static": True})


def uniform(step: float, *, relative: bool = False, rounding: str = "nearest") -> Codec:
    """Sends each float as a whole number of steps, the nearest.

    `x' = step * round(x / step)`, so `|x - x'| <= step / 2` but for the rounding of
    float32 and of x's own dtype, and a value that hardly varies is nearly always zero.
    A code takes two bytes, and
    `lossless("columns")` after it makes them few: principal directions with one step
    for all, entropy-coded, spend bits on a direction as its variance asks (reverse
    water-filling), which a grid of its own for each direction does not.

    NaN, infinity and magnitudes above 2^126 become zero and are counted (`nonfinite`),
    unless they are padding (`ctx.mask`), of which none crosses. Values beyond 32767
    steps are clipped there and counted (`clipped`).

    Args:
      step: from 2^-40 to 2^40. It is rounded to bfloat16, so that products with a code
        are exact in float32 and all devices decode equal numbers.
      relative: whether it counts in root mean squares of each array, which is as
        gradients want it; that step crosses, too, in two bytes, and is never below
        2^-100.
      rounding: "nearest", or "stochastic" (needs `ctx.key`; the mean of x' is x, and
        `|x - x'| < step`, but for the same roundings).

    Returns:
      A rough codec; its state is `{"nonfinite", "clipped"}`, int32.

    Raises:
      ValueError: for an argument that is none of these, and on use when stochastic
        rounding has no key.

    Example:
      >>> import jax.numpy as jnp
      >>> from splitjax.core.codec import Context
      >>> codec, x = uniform(0.5), jnp.array([0.1, -0.7, 3.0])
      >>> message, state = codec.encode(x, codec.init(x), Context())
      >>> codec.decode(message, state)[0].tolist()
      [0.0, -0.5, 3.0]

    Reference:
      H. Gish, J. Pierce, "Asymptotically Efficient Quantizing", 1968, IEEE Trans. Inf.
      Theory 14(5), 676-683: under an entropy coder no scalar quantizer is better at
      high rates. Of transform codes: V. K. Goyal, "Theoretical Foundations of Transform
      Coding", 2001, IEEE Signal Process. Mag. 18(5), 9-21.
    """
    number = isinstance(step, int | float) and not isinstance(step, bool)
    if not (number and LEAST <= step <= MOST):
        raise ValueError(f"uniform(step={step!r}): a number from 2^-40 to 2^40")
    if not isinstance(relative, bool):
        raise ValueError(f"uniform(relative={relative!r}): True or False")
    if rounding not in ROUNDINGS:
        near = nearest(str(rounding), ROUNDINGS)
        raise ValueError(f"uniform has no rounding={rounding!r}: {near}")

    def encode(x, used, ctx, index, constants):
        good = within(x, HUGE)
        own = None if used is not None else real(x.shape, ctx.mask)
        wide = zero_unless(good, x).astype(jnp.float32)
        if own is not None:
            good, wide = good | ~own, jnp.where(own, wide, 0.0)
        size = jnp.bfloat16(step)
        if relative:
            size = _relative(step, wide, own, used)
        place = wide / size.astype(jnp.float32)
        if rounding == "nearest":
            place = jnp.round(place)
        else:
            key = fold(ctx.key, "uniform", index)
            if key is None:
                raise ValueError("stochastic rounding needs a key: Context(key=...)")
            low = jnp.floor(place)  # the difference is exact, a sum would not be
            above = noise.uniform(key, x.shape) < place - low
            place = low + above.astype(jnp.float32)
        codes = jnp.clip(place, -TOP, TOP)
        clipped = count(codes != place)
        codes = codes.astype(jnp.int16)
        if used is not None:
            codes = first_rows(codes, used)
        elif own is not None:
            codes = jnp.where(own, codes, jnp.int16(0))
        told = size.reshape(1) if relative else None
        return Uniform(codes, told, x.dtype.name), count(~good), clipped

    def decode(node, constants):
        codes = node.codes.buffer if is_sized(node.codes) else node.codes
        size = jnp.bfloat16(step) if node.step is None else node.step[0]
        x = codes.astype(jnp.float32) * size.astype(jnp.float32)
        top = float(jnp.finfo(node.dtype).max)
        if relative or top < HUGE:  # a step may lead beyond the dtype's last number
            x = jnp.clip(x, -top, top)
        x = x.astype(node.dtype)
        return first_rows(x, node.codes.used) if is_sized(node.codes) else x

    options = ",relative" * relative + ",stochastic" * (rounding == "stochastic")
    name = f"uniform({step:g}{options})"
    made = counted(encode, decode, more=("clipped",), name=name)
    return dataclasses.replace(made, exact=True)


def _relative(step: float, x: jax.Array, own: Any, used: Any) -> jax.Array:
    """A step in root mean squares of what is sent; x is zero elsewhere."""
    rows = x.shape[0] if x.ndim else 1
    if used is not None:
        size = used * (x.size // max(rows, 1))
    elif own is not None:
        size = jnp.sum(own, dtype=jnp.int32) * (x.size // max(own.size, 1))
    else:
        size = jnp.int32(x.size)
    top = jnp.maximum(jnp.max(jnp.abs(x), initial=0.0), TINY)
    mean = jnp.sum(jnp.square(x / top)) / jnp.maximum(size, 1).astype(jnp.float32)
    # Of an array of zeros any step will do.
    found = jnp.float32(step) * top * jnp.sqrt(mean)
    return jnp.clip(found, TINY, HUGE).astype(jnp.bfloat16)
