"""Randomized response: a share of the signs is flipped before they cross."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from splitjax.codecs.layout import first_rows
from splitjax.core.codec import Codec
from splitjax.core.keys import fold
from splitjax.core.lift import on_leaves
from splitjax.core.mechanism import RANDOMIZED_RESPONSE, Mechanism


def randomize(epsilon: float) -> Codec:
    """Flips each sign with probability `p = 1 / (1 + e^epsilon)`.

    Whatever is sent of a value is at most `e^epsilon` times as likely under one sign as
    under the other: epsilon-local differential privacy *per bit*. An example of D bits
    has D times that, every time it is sent: see `splitjax.privacy.accountant`.

    Its place is between `sign` and `pack_signs`. It sends 1 or -1 for any input (what
    is not below zero counts as 1, a NaN too; `sign` has counted those), so that what it
    promises does not depend on what stands before it.

    The noise is as secret as `ctx.key`: it hides nothing from someone who can make that
    key. It flips in evaluation too.

    Args:
      epsilon: of one bit, above 0 and finite. The probability is rounded up to a
        multiple of 2^-32.

    Returns:
      A rough codec that sends floats of the same dtype.

    Raises:
      ValueError: for an epsilon that is not a number above 0, and on use without a key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from splitjax.core.codec import Context
      >>> codec, x = randomize(1.0), jnp.ones(10_000)
      >>> message, _ = codec.encode(x, (), Context(jax.random.key(0)))
      >>> round(float((message.node < 0).mean()), 2)  # 1 / (1 + e) = 0.27
      0.27

    Reference:
      S. L. Warner, "Randomized Response", 1965, J. Am. Stat. Assoc. 60(309), 63-69.
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(
            f"randomize(epsilon={epsilon}): a finite number above 0. At 0 nothing "
            "of the input would cross, and without end nothing would be hidden"
        )
    # An odd count of key bits must never flip less often than is promised.
    below = min(math.ceil(2.0**32 / (1 + math.exp(min(epsilon, 700.0)))), 2**31)

    def encode(x, used, ctx, index):
        key = fold(ctx.key, "randomize", index)
        if key is None:
            raise ValueError("randomize needs a key: Context(key=...)")
        # A cipher's bits (threefry), not the cheap hash of `core/noise.py`.
        flip = jax.random.bits(key, x.shape, jnp.uint32) < jnp.uint32(below)
        one = jnp.array(1, x.dtype)
        x = jnp.where((x < 0) ^ flip, -one, one)
        return x if used is None else first_rows(x, used)

    made = on_leaves(encode, lambda node: node, name=f"randomize({epsilon:g})")
    mechanism = Mechanism(RANDOMIZED_RESPONSE, float(epsilon), "value")
    return dataclasses.replace(made, mechanism=mechanism)
