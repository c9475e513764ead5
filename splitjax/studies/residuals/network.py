"""A small CNN whose layers keep compressed inputs for their backward pass."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from splitjax.codecs import bounded, compress_residuals, exact_mask, fixed_width
from splitjax.core.codec import Codec
from splitjax.core.keys import fold
from splitjax.core.tap import BOUND, tap_bound
from splitjax.core.tree import Tree

# What a layer keeps of its input: all of it, or a message within a bound.
ARMS: dict[str, Callable[..., Codec] | None] = {
    "exact": None,
    "bounded": bounded,
    "8 bits": functools.partial(fixed_width, bits=8),
    "6 bits": functools.partial(fixed_width, bits=6),
}


class Network(NamedTuple):
    """A small CNN, with what its layers do to what they keep.

    Attributes:
      layer: of a convolution or a dense layer: the same, or `compress_residuals` of it.
      relu: an activation.
      pool: a 2x2 pool.
    """

    layer: Callable[[Callable], Callable]
    relu: Callable[[jax.Array], jax.Array]
    pool: Callable[[jax.Array], jax.Array]

    def logits(self, params: Tree, x: jax.Array) -> jax.Array:
        """(B, classes) of pictures."""
        convolve, multiply = self.layer(_convolve), self.layer(_multiply)
        for name in sorted(params)[:-1]:
            x = self.pool(self.relu(convolve(params[name], x)))
        return multiply(params["head"], x.reshape(len(x), -1))

    def loss(self, params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
        """The mean cross entropy."""
        logits = self.logits(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def network(arm: str) -> Network:
    """The network of an arm. The exact one has JAX's own relu and pool.

    Example:
      >>> network("exact").relu is jax.nn.relu
      True
    """
    codec = ARMS[arm]
    if codec is None:
        pool = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
        return Network(lambda layer: layer, jax.nn.relu, pool)
    layer = functools.partial(compress_residuals, codec=codec)
    return Network(layer, exact_mask.relu, exact_mask.max_pool)


def start(
    widths: Sequence[int],
    shape: tuple[int, ...],
    classes: int,
    *,
    bound: float,
    key: jax.Array,
) -> Tree:
    """He's initial kernels; each layer has a bias and a bound.

    Args:
      widths: of the convolutions, each before a relu and a 2x2 pool.
      shape: (H, W, C) of pictures.
      classes: of the head.
      bound: of every layer's input.
      key: of the kernels.

    Example:
      >>> sorted(start((4,), (8, 8, 1), 10, bound=0.1, key=jax.random.key(0)))
      ['conv_00', 'head']
    """
    *sides, last = shape
    shapes: dict[str, tuple[int, ...]] = {}
    for number, width in enumerate(widths):
        shapes[f"conv_{number:02d}"] = (3, 3, last, width)
        last = width
    halved = 2 ** len(widths)
    shapes["head"] = (last * (sides[0] // halved) * (sides[1] // halved), classes)

    def one(name, shape):
        scale = (2 / np.prod(shape[:-1])) ** 0.5
        kernel = jax.random.normal(fold(key, name), shape) * jnp.float32(scale)
        bias = jnp.zeros(shape[-1])
        return {"kernel": kernel, "bias": bias, BOUND: tap_bound(bound)}

    return {name: one(name, shape) for name, shape in shapes.items()}


def _convolve(params: Tree, x: jax.Array) -> jax.Array:
    how = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    y = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", **how)
    return y + params["bias"].reshape(1, 1, 1, -1)


def _multiply(params: Tree, x: jax.Array) -> jax.Array:
    return x @ params["kernel"] + params["bias"].reshape(1, -1)
