"""Floats cross in a narrower format."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.core.codec import Codec
from splitjax.core.lift import on_leaves
from splitjax.core.message import Sized, is_sized
from splitjax.core.tree import nearest

FORMATS = {
    "bf16": jnp.bfloat16,
    "f16": jnp.float16,
    "f8_e4m3": jnp.float8_e4m3fn,
    "f8_e5m2": jnp.float8_e5m2,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cast:
    """An array in another format, and the name of the dtype that it had."""

    array: Any
    dtype: str = dataclasses.field(metadata={"static": True})


def cast(to: str) -> Codec:
    """Sends floats in a narrower format; the receiver casts back to the dtype they had.

    What is finite stays finite (it saturates where the format ends), and what is not
    stays so: a NaN arrives as a NaN, an infinity as one or, in `f8_e4m3`, which has
    none, as a NaN. Leaves that are already as narrow cross as they are.

    Args:
      to: "bf16", "f16", "f8_e4m3" (largest value 448) or "f8_e5m2" (57344).

    Raises:
      ValueError: for another format.

    Example:
      >>> import jax.numpy as jnp
      >>> codec = cast("f8_e4m3")
      >>> message, state = codec.encode(jnp.array([0.1, 1e9]), (), None)
      >>> x, _ = codec.decode(message, state)
      >>> x.tolist(), str(x.dtype)
      ([0.1015625, 448.0], 'float32')

    Reference:
      P. Micikevicius et al., "FP8 Formats for Deep Learning", 2022, arXiv:2209.05433.

    Differs:
      No scale is applied before the cast.
    """
    if to not in FORMATS:
        raise ValueError(f"cast has no format {to!r}: {nearest(to, tuple(FORMATS))}")
    narrow = jnp.dtype(FORMATS[to])
    top = float(jnp.finfo(narrow).max)

    def encode(x, used, ctx, index):
        name = x.dtype.name
        if x.dtype.itemsize > narrow.itemsize:
            if float(jnp.finfo(x.dtype).max) > top:
                x = jnp.where(jnp.isinf(x), x, jnp.clip(x, -top, top))
            x = x.astype(narrow)
        return Cast(x if used is None else Sized(x, used), name)

    def decode(node):
        if is_sized(node.array):
            return Sized(node.array.buffer.astype(node.dtype), node.array.used)
        return node.array.astype(node.dtype)

    made = on_leaves(encode, decode, name=f"cast({to})")
    return dataclasses.replace(made, exact=True)
