"""Pieces of image models: convolutions, pooling, and pictures beside their mask."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.core.tree import Tree
from splitjax.models.dense import Dense

# Of variance 2 / fan-out, as ResNets and VGGs begin.
KERNELS = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def opened(x: Tree) -> tuple[jax.Array, jax.Array | None]:
    """Pictures and their mask, of {"h", "mask"} or of an array alone.

    Example:
      >>> opened({"h": 1, "mask": 2}), opened(1)
      ((1, 2), (1, None))
    """
    return (x["h"], x.get("mask")) if isinstance(x, dict) else (x, None)


def closed(x: Tree, h: jax.Array) -> Tree:
    """What a stage gives on: new pictures in the place of x's, zeros where padding is.

    Zeros carry no gradient, so what a codec does to padding reaches no parameter.

    Example:
      >>> x = {"h": jnp.ones((2, 1)), "mask": jnp.array([True, False])}
      >>> closed(x, x["h"])["h"].tolist()
      [[1.0], [0.0]]
    """
    if not isinstance(x, dict):
        return h
    if (mask := x.get("mask")) is not None:
        h = jnp.where(mask.reshape(mask.shape + (1,) * (h.ndim - 1)), h, 0)
    return {**x, "h": h}


def conv(
    features: int,
    size: int,
    name: str,
    *,
    stride: int = 1,
    bias: bool = True,
    dtype: Any = jnp.float32,
) -> nn.Conv:
    """A square convolution whose output is its input's size over the stride.

    Parameters: `kernel` (size, size, I, J) and, with a bias, `bias` (J,), float32.

    Example:
      >>> conv(8, 3, "conv", stride=2).padding
      ((1, 1), (1, 1))
    """
    around = (size // 2, size // 2)
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=(around, around),
        use_bias=bias,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=KERNELS,
        name=name,
    )


class Classifier(nn.Module):
    """Logits (B, classes), float32: pictures as rows, hidden layers, a linear one.

    Parameters: `hidden_i/kernel`, `hidden_i/bias`, `classifier/kernel`,
    `classifier/bias`.

    Attributes:
      classes: how many.
      pool: "mean" over the places of a picture, or "flat": all values in a row.
      hidden: widths of layers with a relu, each with dropout after it.
      dropout: the share of their values that is dropped.

    Example:
      >>> layer = Classifier(3)
      >>> made = layer.init(jax.random.key(0), jnp.ones((2, 4, 4, 5)), train=False)
      >>> made["params"]["classifier"]["kernel"].shape
      (5, 3)
    """

    classes: int
    pool: str = "mean"
    hidden: Sequence[int] = ()
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> jax.Array:
        """Maps pictures (B, H, W, C) to logits."""
        h, _ = opened(x)
        h = h.astype(jnp.float32)
        h = h.mean((1, 2)) if self.pool == "mean" else h.reshape(len(h), -1)
        for index, width in enumerate(self.hidden):
            h = nn.relu(Dense(width, kernel_init=KERNELS, name=f"hidden_{index}")(h))
            h = nn.Dropout(self.dropout)(h, deterministic=not train)
        return Dense(self.classes, name="classifier")(h)
