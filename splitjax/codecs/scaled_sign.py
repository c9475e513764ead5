"""Gradients cross as signs and a mean magnitude: one bit a value."""

import dataclasses

import jax
import jax.numpy as jnp

from splitjax.codecs.binary import Signs, pack, unpack
from splitjax.codecs.finite import within, zero_unless
from splitjax.codecs.grid import HUGE
from splitjax.codecs.layout import Layout, first_rows
from splitjax.core.codec import Codec
from splitjax.core.lift import counted
from splitjax.core.message import is_sized
from splitjax.core.tree import nearest

AXES = ("token", "channel")


def scaled_sign(axis: str = "token") -> Codec:
    """Sends `mean(|x|) * sign(x)`: one bit a value, and one scale.

    Of all multiples of the signs this one is nearest to x, so the error is at most
    `|x|`. It is biased: put `feedback` around it where that shows.

    NaN and infinity (and magnitudes above 2^126, where a mean is so large) do not enter
    their scale and are counted: see `nonfinite`. They cross as signs, a NaN as plus.

    Args:
      axis: what shares a scale: "token" a row of the last axis, "channel" all that has
        one index on the last axis (padding left out).

    Returns:
      A rough codec; `ceil(n / 8)` bytes and two for each scale.

    Raises:
      ValueError: for another axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from splitjax.core.codec import Context
      >>> codec, x = scaled_sign(), jnp.array([[1.0, -3.0], [0.0, 0.0]])
      >>> message, state = codec.encode(x, codec.init(x), Context())
      >>> codec.decode(message, state)[0].tolist()
      [[2.0, -2.0], [0.0, 0.0]]

    Reference:
      S. P. Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient
      Compression Schemes", 2019, arXiv:1901.09847 (the scaled sign).

    Differs:
      A scale for each row or channel instead of one for each layer, in bfloat16.
    """
    if axis not in AXES:
        raise ValueError(f"scaled_sign has no axis={axis!r}: {nearest(axis, AXES)}")
    how = {"axis": axis, "group": 1}

    def encode(x, used, ctx, index, constants):
        layout = Layout.of(x.shape, sized=used is not None, **how)
        valid = layout.valid(used, ctx.mask)

        def scale_of(x):
            size = layout.split(jnp.abs(x)).astype(jnp.float32)
            if valid is None:
                share = jnp.float32(1 / max(1, size.shape[layout.axis]))
            else:
                size = jnp.where(valid, size, 0.0)
                count = jnp.sum(jnp.broadcast_to(valid, size.shape), layout.axis)
                share = 1 / jnp.maximum(count, 1).astype(jnp.float32)
                share = jnp.expand_dims(share, layout.axis)
            # Each is divided before the sum, which could not hold them otherwise.
            return jnp.sum(size * share, layout.axis, keepdims=True)

        def repair(x, scale):
            good = within(x, HUGE)
            bad = layout.split(~good)
            bad = bad if valid is None else bad & valid
            return scale_of(zero_unless(good, x)), jnp.sum(bad, dtype=jnp.int32)

        # A bad value shows in its scale. To count them takes as long as all the rest.
        scale = scale_of(x)
        clean = jnp.all(within(scale, HUGE))
        scale, bad = jax.lax.cond(
            clean, lambda x, scale: (scale, jnp.int32(0)), repair, x, scale
        )
        sent = layout.send(scale.astype(jnp.bfloat16), used)
        return Signs(pack(x, used, layout), sent, x.shape, x.dtype.name), bad

    def decode(node, constants):
        sized = is_sized(node.bits)
        layout = Layout.of(node.shape, sized=sized, **how)
        signs = layout.split(unpack(node.bits, layout)).astype(jnp.float32)
        x = signs * layout.receive(node.scale).astype(jnp.float32)
        top = float(jnp.finfo(node.dtype).max)
        if top < HUGE:  # the scale may be rounded beyond the dtype's last number
            x = jnp.clip(x, -top, top)
        x = layout.merge(x).astype(node.dtype)
        return first_rows(x, node.bits.used) if sized else x

    made = counted(encode, decode, name=f"scaled_sign({axis})")
    return dataclasses.replace(made, exact=True)
