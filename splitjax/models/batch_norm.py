"""Batch normalization that padding rows never enter."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class BatchNorm(nn.Module):
    """scale * (x - mean) / sqrt(var + eps) + bias, of each channel, in float32.

    In training mean and variance are those of the rows whose mask is True, and the
    running ones move to them by 1 - momentum; a batch without such rows is normed by
    the running ones and leaves them as they are. Otherwise the running ones norm.

    Parameters: `scale` (C,), `bias` (C,). State: `batch_stats/mean` (C,) and
    `batch_stats/var` (C,), float32.

    Attributes:
      eps: keeps the root from zero.
      momentum: the share of the running statistics that a step keeps.
      dtype: of the output.

    Example:
      >>> layer = BatchNorm()
      >>> x, mask = jnp.array([[1.0], [3.0], [99.0]]), jnp.array([True, True, False])
      >>> made = layer.init(jax.random.key(0), x, mask, train=False)
      >>> y, new = layer.apply(made, x, mask, train=True, mutable="batch_stats")
      >>> y[:2, 0].round(3).tolist(), round(float(new["batch_stats"]["mean"][0]), 3)
      ([-1.0, 1.0], 0.2)

    Reference:
      Ioffe and Szegedy, Batch Normalization, 2015 (arXiv:1502.03167), algorithm 1.

    Differs: running statistics are an exponential mean, of the biased variance.
    """

    eps: float = 1e-5
    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None, *, train: bool
    ) -> jax.Array:
        """Norms x (B, ..., C), of any float dtype, with a mask (B,) or None."""
        shape = x.shape[-1:]
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        scale = self.param("scale", ones, shape, jnp.float32)
        bias = self.param("bias", zeros, shape, jnp.float32)
        old_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        old_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        mean, var = old_mean.value, old_var.value
        x = x.astype(jnp.float32)
        if train:
            found, keep = _statistics(x, mask, (mean, var), self.momentum)
            if not self.is_initializing():
                old_mean.value = keep * mean + (1 - keep) * found[0]
                old_var.value = keep * var + (1 - keep) * found[1]
            mean, var = found
        factor = scale * jax.lax.rsqrt(var + self.eps)
        lead = tuple(range(x.ndim - 1))
        y = (x - jnp.expand_dims(mean, lead)) * jnp.expand_dims(factor, lead)
        return (y + jnp.expand_dims(bias, lead)).astype(self.dtype)


def _statistics(x, mask, running, momentum):
    """Mean and variance of the real rows, and what the running ones keep."""
    axes = tuple(range(x.ndim - 1))
    if mask is None:
        mean = x.mean(axes)
        center = jnp.expand_dims(mean, axes)
        return (mean, jnp.square(x - center).mean(axes)), momentum
    real = mask.reshape(mask.shape + (1,) * (x.ndim - 1))
    rows = mask.sum().astype(jnp.float32)
    count = jnp.maximum(rows, 1) * (x.size // (x.shape[0] * x.shape[-1]))
    mean = jnp.where(real, x, 0).sum(axes) / count
    wrong = jnp.where(real, x - jnp.expand_dims(mean, axes), 0)
    var = jnp.square(wrong).sum(axes) / count
    some = rows > 0
    mean, var = (
        jnp.where(some, new, old) for new, old in zip((mean, var), running, strict=True)
    )
    return (mean, var), jnp.where(some, momentum, 1.0)
