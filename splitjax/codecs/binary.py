"""Floats cross as their signs: one bit a value."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.codecs.finite import (
    clearly_within,
    count,
    real,
    within,
    zero_unless,
)
from splitjax.codecs.grid import HUGE, round_down
from splitjax.codecs.layout import Layout, first_rows
from splitjax.codecs.pack import pack_bits, unpack_bits
from splitjax.core.codec import Codec, chain
from splitjax.core.lift import counted, on_leaves
from splitjax.core.message import Sized, is_sized
from splitjax.core.straight_through import ste_sign


def sign(*, center: bool = False) -> Codec:
    """Every float becomes 1 or -1; see `ste_sign` for the gradient.

    NaN and infinity are counted (see `nonfinite`); a NaN is sent as 1.

    Args:
      center: the mean of each channel (one index on the last axis) over what is real of
        the message, rounded down to 8 bits, is taken off first; it does not cross. For
        a cut behind a relu, where all signs are one. What is sent of an example then
        depends on its batch (no noise after it has a budget: see `privacy.budget`), and
        of a constant channel is 1. No gradient goes by way of the mean.

    Returns:
      A smooth codec that sends floats of the same dtype: `binary` packs them.

    Example:
      >>> import jax.numpy as jnp
      >>> from splitjax.core.codec import Context
      >>> codec, x = sign(), jnp.array([-0.3, 0.0])
      >>> codec.encode(x, codec.init(x), Context())[0].node.tolist()
      [-1.0, 1.0]
    """

    def encode(x, used, ctx, index, constants):
        valid = real(x.shape, ctx.mask)
        if used is not None:
            row = jax.lax.iota(jnp.int32, x.shape[0]) < used
            valid = row.reshape(-1, *[1] * (x.ndim - 1))
        signs = ste_sign(x - _means(x, valid).astype(x.dtype) if center else x)
        return signs if used is None else first_rows(signs, used), _count(x, valid)

    name = "sign(center)" if center else "sign"
    made = counted(encode, lambda node, constants: node, smooth=True, name=name)
    return dataclasses.replace(made, exact=True, mixes=None if center else 1)


def _count(x: jax.Array, valid: jax.Array | None) -> jax.Array:
    """How many are not finite. To count takes longer than to see that none is."""

    def each(x):
        bad = ~jnp.isfinite(x)
        return count(bad if valid is None else bad & valid)

    x = jax.lax.stop_gradient(x)
    return jax.lax.cond(clearly_within(x), lambda x: jnp.int32(0), each, x)


def _means(x: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Of each channel, rounded down: a sum may be rounded, and a constant stays one."""
    x = jax.lax.stop_gradient(x)
    good = within(x, HUGE)
    good = good if valid is None else good & valid
    axes = tuple(range(max(x.ndim - 1, min(x.ndim, 1))))
    many = jnp.sum(good, axes, keepdims=True, dtype=jnp.int32)
    # Each is divided before the sum, which could not hold them otherwise.
    share = 1 / jnp.maximum(many, 1).astype(jnp.float32)
    whole = zero_unless(good, x).astype(jnp.float32)
    return round_down(jnp.sum(whole * share, axes, keepdims=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Signs:
    """What crosses for one array.

    Attributes:
      bits: uint8, packed eight to a byte, 1 for plus; rows of a `Sized` each for
        themselves.
      scale: bfloat16 `[number of scales]`, or None for one.
      shape: of the array.
      dtype: of the array.
    """

    bits: Any
    scale: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})


def pack(x: jax.Array, used: jax.Array | None, layout: Layout) -> jax.Array | Sized:
    """The signs of an array in bits; what is not below zero counts as plus.

    Example:
      >>> import jax.numpy as jnp
      >>> layout = Layout.of((4,), sized=False, axis="token", group=1)
      >>> pack(jnp.array([1.0, -2.0, 0.0, -1.0]), None, layout).tolist()
      [[5]]
    """
    plus = (~(x < 0)).astype(jnp.uint8)
    bits = pack_bits(plus.reshape(layout.packing(1)), 1)
    return bits if used is None else first_rows(bits, used)


def unpack(bits: jax.Array | Sized, layout: Layout) -> jax.Array:
    """The signs as int8, in the array's shape: undoes `pack`.

    Example:
      >>> import jax.numpy as jnp
      >>> layout = Layout.of((4,), sized=False, axis="token", group=1)
      >>> unpack(jnp.array([[5]], jnp.uint8), layout).tolist()
      [1, -1, 1, -1]
    """
    packed = bits.buffer if isinstance(bits, Sized) else bits
    plus = unpack_bits(packed, 1, layout.packing(1)[-1]).reshape(layout.shape)
    return plus.astype(jnp.int8) * jnp.int8(2) - jnp.int8(1)


def pack_signs() -> Codec:
    """Sends one bit a value; the receiver has 1 or -1.

    What is not below zero counts as 1, a NaN too. That is not counted here: `sign`,
    which stands before it, has done so.

    Returns:
      A rough codec: `ceil(n / 8)` bytes for an array; for the used rows of a `Sized`,
      whole bytes each.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from splitjax.core.codec import wire_bytes
      >>> wire_bytes(pack_signs(), jax.ShapeDtypeStruct((32, 512), jnp.float32))
      2048
    """

    def encode(x, used, ctx, index):
        layout = Layout.of(x.shape, sized=used is not None, axis="token", group=1)
        return Signs(pack(x, used, layout), None, x.shape, x.dtype.name)

    def decode(node):
        sized = is_sized(node.bits)
        layout = Layout.of(node.shape, sized=sized, axis="token", group=1)
        x = unpack(node.bits, layout).astype(node.dtype)
        return first_rows(x, node.bits.used) if sized else x

    made = on_leaves(encode, decode, name="pack_signs")
    return dataclasses.replace(made, exact=True)


def binary(*, center: bool = False) -> Codec:
    """Activations cross as signs, one bit a value: `chain(sign(), pack_signs())`.

    Between the two `randomize` has its place. For gradients see `scaled_sign` (one bit)
    or `quantize(8)`: with float32 gradients a training step sends only 1.94 times
    less in total.

    Signs alone protect little: a linear attack on them still recovers most of the
    input.

    Args:
      center: see `sign`.

    Example:
      >>> import jax.numpy as jnp
      >>> from splitjax.core.codec import Context
      >>> codec, x = binary(), jnp.array([[0.3, -2.0, 0.0]])
      >>> message, state = codec.encode(x, codec.init(x), Context())
      >>> codec.decode(message, state)[0].tolist()
      [[1.0, -1.0, 1.0]]

    Reference:
      N. D. Pham et al., "Binarizing Split Learning for Data Privacy Enhancement and
      Computation Reduction", 2022, arXiv:2206.04864.

    Differs:
      The paper publishes no code; this is the usual practice of binary networks, whose
      binary layers are in `splitjax.models.binary_dense` and `binary_conv`.
    """
    return chain(sign(center=center), pack_signs())
