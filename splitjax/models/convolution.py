"""Pieces of image models: convolutions, pooling, and pictures beside their mask."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.core.factor import Factor, cast_floats
from splitjax.core.tree import Tree
from splitjax.factors.product import Product
from splitjax.models.dense import Dense
from splitjax.optim.curvature import TAPS, watch

PICTURES = ("NHWC", "HWIO", "NHWC")
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
) -> "Conv":
    """A square convolution whose output is its input's size over the stride.

    Parameters: `kernel` (size, size, I, J) and, with a bias, `bias` (J,), float32.

    Example:
      >>> conv(8, 3, "conv", stride=2).padding
      ((1, 1), (1, 1))
    """
    around = (size // 2, size // 2)
    return Conv(
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


class Conv(nn.Conv):
    """Flax's convolution of pictures, whose kernel may be a `Factor`.

    A `Product` of kernels (H, W, I, R) and (1, 1, R, J) runs as the two convolutions
    that it is; another factor as the kernel it stands for.

    Raises:
      ValueError: for a factor of another shape, or in a convolution of groups.

    Example:
      >>> layer = Conv(5, (3, 3))
      >>> factor = Product(jnp.ones((3, 3, 2, 1)), jnp.ones((1, 1, 1, 5)))
      >>> params = {"kernel": factor, "bias": jnp.zeros(5)}
      >>> layer.apply({"params": params}, jnp.ones((1, 4, 4, 2))).shape
      (1, 4, 4, 5)
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps pictures (B, H, W, I) to (B, H', W', J)."""
        found = self.has_variable("params", "kernel")
        factor = self.get_variable("params", "kernel") if found else None
        if not isinstance(factor, Factor):
            taps = self.get_variable("params", TAPS)
            if taps is not None and self.feature_group_count != 1:
                raise ValueError(
                    f"K-FAC's taps in a convolution of {self.feature_group_count} "
                    "groups: its factors are for one group; leave it out"
                )
            return watch(super().__call__, inputs, taps, self._patches)
        sides: Any = self.kernel_size
        want = (*sides, inputs.shape[-1], self.features)
        if factor.spec.shape != want or self.feature_group_count != 1:
            raise ValueError(
                f"a factor {factor.spec.shape} for a convolution {want} of "
                f"{self.feature_group_count} groups: factors are for one group"
            )
        dtype = self.dtype or inputs.dtype
        kernel: Any = cast_floats(factor, dtype)
        # One with a product for each place of the window has a larger b.
        product = isinstance(kernel, Product) and kernel.b.shape[:-2] == (1, 1)
        first = kernel.a if product else kernel.materialize()
        y = self._convolved(inputs.astype(dtype), first)
        if product:
            y = jax.lax.conv_general_dilated(
                y, kernel.b, (1, 1), "VALID", dimension_numbers=PICTURES
            )
        if self.use_bias:
            bias = self.get_variable("params", "bias").astype(dtype)
            y = y + jnp.expand_dims(bias, (0, 1, 2))
        return y

    def _convolved(self, x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, **self._window(), dimension_numbers=PICTURES
        )

    def _patches(self, x):
        """The windows (B, H', W', I H W) that the kernel multiplies."""
        sides: Any = self.kernel_size
        return jax.lax.conv_general_dilated_patches(
            x,
            sides,
            **self._window(),
            dimension_numbers=PICTURES,
            precision=jax.lax.Precision.HIGHEST,
        )

    def _window(self) -> dict[str, Any]:
        def pair(value):
            return (value, value) if isinstance(value, int) else tuple(value or (1, 1))

        return {
            "window_strides": pair(self.strides),
            "padding": self.padding,
            "lhs_dilation": pair(self.input_dilation),
            "rhs_dilation": pair(self.kernel_dilation),
        }


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
