"""Noise for privacy: rows are clipped to a norm, then Laplace or normal noise joins."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from splitjax.codecs.finite import real, within, zero_unless
from splitjax.codecs.layout import first_rows
from splitjax.core.codec import Codec
from splitjax.core.keys import fold
from splitjax.core.lift import counted
from splitjax.core.mechanism import GAUSS, LAPLACE, Mechanism
from splitjax.core.precision import widened
from splitjax.core.tree import nearest

KINDS = (LAPLACE, GAUSS)
LARGEST = 2.0**48  # so that a sum of squares is finite


def perturb(kind: str, *, scale: float, clip: float) -> Codec:
    """Adds noise to rows whose norm was clipped first.

    `x' = x * min(1, clip / |x|) + noise`, with the L1 norm for "laplace" and the L2
    norm for "gauss". Two clipped rows are at most `2 * clip` apart, the sensitivity;
    the noise is `scale` times that. One release of a row is `1 / scale`-locally
    differentially private ("laplace"), or as `splitjax.privacy.accountant` says
    ("gauss"). It holds for everything that is computed from x' alone: put `sign`,
    `quantize`, ... behind it.

    A row is one index of the leading axis: an example; of a `Sized` (after `ragged`)
    one token, so that an example is many rows.

    NaN, infinity and magnitudes above 2^48 become zero first and are counted: see
    `nonfinite`. So does padding, uncounted. The noise is as secret as `ctx.key`. (The
    last bits of a float can tell about the noise; pass the result through a coarse
    codec.)

    Args:
      kind: "laplace" or "gauss".
      scale: b of the Laplace distribution, or the standard deviation, over the
        sensitivity; above 0.
      clip: the largest norm of a row, above 0.

    Returns:
      A smooth codec: the gradient passes through the clipping. The message has the
      input's dtype.

    Raises:
      ValueError: for an argument that is none of these, and on use without a key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from splitjax.core.codec import Context
      >>> codec, x = perturb("gauss", scale=0.5, clip=1.0), jnp.zeros((1, 10_000))
      >>> message, _ = codec.encode(x, codec.init(x), Context(jax.random.key(0)))
      >>> round(float(message.node.std()), 1)
      1.0

    Reference:
      C. Dwork and A. Roth, "The Algorithmic Foundations of Differential Privacy", 2014,
      definition 3.3 and appendix A.
    """
    if kind not in KINDS:
        raise ValueError(f"perturb has no kind {kind!r}: {nearest(kind, KINDS)}")
    for name, value in (("scale", scale), ("clip", clip)):
        if not 0 < value < math.inf:
            raise ValueError(f"perturb({name}={value}): a finite number above 0")
    draw = jax.random.laplace if kind == LAPLACE else jax.random.normal

    def encode(x, used, ctx, index, constants):
        key = fold(ctx.key, "perturb", index)
        if key is None:
            raise ValueError("perturb needs a key: Context(key=...)")
        good = within(x, LARGEST)
        bad, valid = ~good, None if used is not None else real(x.shape, ctx.mask)
        if valid is not None:
            bad, good = bad & valid, good & valid
        y = widened(zero_unless(good, x))
        y = y * (clip / jnp.maximum(_norms(y, kind), clip))
        y = y + draw(key, x.shape, y.dtype) * (2 * clip * scale)
        top = float(jnp.finfo(x.dtype).max)
        y = jnp.clip(y, -top, top).astype(x.dtype)
        y = y if used is None else first_rows(y, used)
        return y, jnp.sum(bad, dtype=jnp.int32)

    name = f"perturb({kind},{scale:g},{clip:g})"
    made = counted(encode, lambda node, constants: node, smooth=True, name=name)
    level = 1 / scale if kind == LAPLACE else scale
    return dataclasses.replace(made, mechanism=Mechanism(kind, level, "row"))


def _norms(x: jax.Array, kind: str) -> jax.Array:
    """The norm of each row, with a finite gradient at zero."""
    axes = tuple(range(1, x.ndim))
    if kind == LAPLACE:
        return jnp.sum(jnp.abs(x), axes, keepdims=True)
    square = jnp.sum(x * x, axes, keepdims=True)
    return jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0).astype(x.dtype)
