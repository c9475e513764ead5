"""Binary convolutions: their weights are signs, and so is what they give on."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.adapters.linen import from_linen
from splitjax.core.stage import Stage
from splitjax.core.straight_through import ste_sign
from splitjax.models.binary_dense import LATENT, BinaryLayer, check_float

LAYOUT = ("NHWC", "HWIO", "NHWC")


class BinaryConv(nn.Module):
    """A square convolution with the signs of its latent weights; see `BinaryDense`.

    Parameters: `latent` (size, size, I, J), float32. Around the picture are zeros,
    which are neither sign: they add nothing.

    Attributes:
      features: J.
      size: of the kernel, odd.
      stride: between places.

    Raises:
      TypeError: for an input of integers: scale pixels to floats first.

    Example:
      >>> layer, x = BinaryConv(2, stride=2), jnp.ones((1, 8, 8, 3))
      >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
      (1, 4, 4, 2)
    """

    features: int
    size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer to x (B, H, W, I): real numbers, or signs."""
        check_float(x, "BinaryConv")
        shape = (self.size, self.size, x.shape[-1], self.features)
        latent = self.param("latent", LATENT, shape, jnp.float32)
        around = (self.size // 2, self.size // 2)
        return jax.lax.conv_general_dilated(
            x.astype(jnp.float32),
            ste_sign(latent),
            (self.stride, self.stride),
            (around, around),
            dimension_numbers=LAYOUT,
        )


def binary_cnn(widths: Sequence[int]) -> tuple[Stage, ...]:
    """Binary convolutions as stages "binary_0", "binary_1", ..., each of stride 2.

    Args:
      widths: channels; each layer halves height and width.

    Example:
      >>> [stage.name for stage in binary_cnn([32, 64])]
      ['binary_0', 'binary_1']
    """
    return tuple(
        from_linen(BinaryLayer(BinaryConv(width, stride=2)), f"binary_{i}")
        for i, width in enumerate(widths)
    )
