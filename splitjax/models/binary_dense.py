"""Binary dense layers: their weights are signs, and so is what they give on."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.adapters.linen import from_linen
from splitjax.core.stage import Stage
from splitjax.core.straight_through import ste_sign
from splitjax.core.tree import Tree, is_float
from splitjax.models.batch_norm import BatchNorm
from splitjax.models.convolution import opened

# Small, so that signs change early; the optimizer keeps them in [-1, 1].
LATENT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class BinaryDense(nn.Module):
    """y = x @ sign(latent), with the straight-through gradient of `ste_sign`.

    There is no bias: a norm follows. Parameters: `latent` (I, J), float32, which an
    optimizer moves and `optim.clip_latent` keeps within [-1, 1].

    Attributes:
      features: J.

    Raises:
      TypeError: for an input of integers: scale pixels to floats first.

    Example:
      >>> layer, x = BinaryDense(2), jnp.ones((4, 3))
      >>> made = layer.init(jax.random.key(0), x)
      >>> bool((jnp.abs(layer.apply(made, x)) <= 3).all())
      True

    Reference:
      I. Hubara et al., "Binarized Neural Networks", 2016, arXiv:1602.02830.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer to x (..., I): real numbers, or signs."""
        check_float(x, "BinaryDense")
        shape = (x.shape[-1], self.features)
        latent = self.param("latent", LATENT, shape, jnp.float32)
        return x.astype(jnp.float32) @ ste_sign(latent)


class BinaryLayer(nn.Module):
    """sign(norm(product(x))): a binary layer, batch normalization, signs.

    Parameters: `product/latent`, `norm/scale`, `norm/bias`; state as `BatchNorm` has.
    Padding rows (mask False) do not enter the statistics and give zeros.

    Attributes:
      product: a `BinaryDense` or a `BinaryConv`.

    Raises:
      ValueError: in training on a batch of one value a channel, whose norm is constant.

    Example:
      >>> layer, x = BinaryLayer(BinaryDense(2)), jnp.ones((4, 3))
      >>> made = layer.init(jax.random.key(0), x, train=False)
      >>> sorted(made["params"])
      ['norm', 'product']
    """

    product: nn.Module

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Maps x (B, ..., I), or {"h", "mask"}, to signs of float32."""
        h, mask = opened(x)
        pre = self.product(h)
        if train and pre.size == pre.shape[-1]:
            raise ValueError(
                f"a norm of {pre.shape}: the variance of one value is zero, and every "
                "sign would be +1. Train with larger batches."
            )
        signs = ste_sign(BatchNorm(name="norm")(pre, mask, train=train))
        if not isinstance(x, dict):
            return signs
        if mask is not None:
            real = mask.reshape(mask.shape + (1,) * (signs.ndim - 1))
            signs = jnp.where(real, signs, 0.0)
        return {**x, "h": signs}


def binary_mlp(features: Sequence[int]) -> tuple[Stage, ...]:
    """Binary layers as stages "binary_0", "binary_1", ...: an edge that is cheap.

    The first takes real numbers, the others signs. Put layers of floats behind the cut
    (`mlp`), and `codecs.binary` at it.

    Args:
      features: the widths.

    Example:
      >>> [stage.name for stage in binary_mlp([64, 32])]
      ['binary_0', 'binary_1']
    """
    return tuple(
        from_linen(BinaryLayer(BinaryDense(width)), f"binary_{i}")
        for i, width in enumerate(features)
    )


def check_float(x: jax.Array, name: str) -> None:
    """Raises a TypeError for an input of integers.

    Example:
      >>> check_float(jnp.ones(1), "BinaryDense")
    """
    if not is_float(x):
        raise TypeError(
            f"{name} takes floats, and was given {x.dtype} {x.shape}: scale pixels "
            "first, (x - mean) / deviation"
        )
