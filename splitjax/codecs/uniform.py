"""Floats cross as whole multiples of one step: what an entropy coder does best with."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.codecs.finite import count, real, within, zero_unless
from splitjax.codecs.grid import HUGE
from splitjax.codecs.layout import first_rows
from splitjax.core.codec import Codec
from splitjax.core.lift import counted
from splitjax.core.message import is_sized

LEAST, MOST = 2.0**-40, 2.0**40  # of a step
TOP = 2**15 - 1  # of a code


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Uniform:
    """The codes of an array, int16 `[...]`, `Sized` as it is; and its dtype."""

    codes: Any
    dtype: str = dataclasses.field(metadata={"static": True})


def uniform(step: float) -> Codec:
    """Sends each float as the nearest whole number of steps.

    `x' = step * round(x / step)`, so `|x - x'| <= step / 2`, whatever the value, and
    one that hardly varies is nearly always zero. A code takes two bytes, and
    `lossless("columns")` after it makes them few: principal directions with one step
    for all, entropy-coded, spend bits on a direction as its variance asks (reverse
    water-filling), which a grid of its own for each direction does not.

    NaN, infinity and magnitudes above 2^126 become zero and are counted (`nonfinite`),
    unless they are padding (`ctx.mask`), of which none crosses. Values beyond 32767
    steps are clipped there and counted (`clipped`).

    Args:
      step: from 2^-40 to 2^40, rounded to bfloat16, so that products with a code are
        exact in float32 and all devices decode equal numbers.

    Returns:
      A rough codec; its state is `{"nonfinite", "clipped"}`, int32.

    Raises:
      ValueError: for another step.

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
    if not (isinstance(step, int | float) and LEAST <= step <= MOST):
        raise ValueError(f"uniform(step={step}): a number from 2^-40 to 2^40")
    near = float(jnp.bfloat16(step))
    inverse = np.float32(1 / near)

    def encode(x, used, ctx, index, constants):
        good, own = within(x, HUGE), None
        if used is None:
            own = real(x.shape, ctx.mask)
        place = zero_unless(good, x).astype(jnp.float32) * inverse
        if own is not None:
            good, place = good | ~own, jnp.where(own, place, 0.0)
        place = jnp.round(place)
        codes = jnp.clip(place, -TOP, TOP)
        clipped = count(codes != place)
        codes = codes.astype(jnp.int16)
        if used is not None:
            codes = first_rows(codes, used)
        return Uniform(codes, x.dtype.name), count(~good), clipped

    def decode(node, constants):
        codes = node.codes.buffer if is_sized(node.codes) else node.codes
        x, top = codes.astype(jnp.float32) * near, float(jnp.finfo(node.dtype).max)
        if top < HUGE:  # a step may lead beyond the dtype's end
            x = jnp.clip(x, -top, top)
        x = x.astype(node.dtype)
        return first_rows(x, node.codes.used) if is_sized(node.codes) else x

    name = f"uniform({step:g})"
    made = counted(encode, decode, more=("clipped",), name=name)
    return dataclasses.replace(made, exact=True)
