"""Layer norm in two passes, with three residuals."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.kernels.kernel import Kernel
from splitjax.kernels.tile import Tile


def layer_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    eps: float = 1e-6,
    dtype: Any = None,
    impl: str = "auto",
) -> jax.Array:
    """scale * (x - mu) / sqrt(mean((x - mu)^2) + eps) + bias over the last axis.

    Mean and variance are float32, the variance in a second pass over what is left
    without the mean. The backward pass has x, mu and 1 / sqrt(.) of each row, and no
    other residual:

        xhat = (x - mu) * rstd,  g = dy * scale
        dx = (g - mean(g) - xhat * mean(g * xhat)) * rstd

    Args:
      x: (..., D), of any float dtype.
      scale: (D,).
      bias: (D,).
      eps: added to the variance.
      dtype: of the result; that of x by default.
      impl: see `kernel.Kernel`.

    Raises:
      ValueError: when shapes or dtypes do not fit.

    Example:
      >>> x = jnp.array([[1.0, 3.0]])
      >>> layer_norm(x, jnp.ones(2), jnp.zeros(2)).round(3).tolist()
      [[-1.0, 1.0]]

    Reference:
      Wang et al., LightSeq2: Accelerated Training for Transformer-based Models on GPUs,
      2022 (arXiv:2110.05722), section on layer-wise kernels; J. L. Ba, J. R. Kiros,
      G. E. Hinton, Layer Normalization, 2016 (arXiv:1607.06450), equation 3.

    Differs:
      LightSeq's public kernels take mean(x^2) - mean(x)^2 in one pass, which cancels
      where the mean is large beside the spread: at a mean of 1e4 and a spread of 1 it
      is wrong by thousands. Sums over rows are in a fixed order, without atomics.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"layer_norm needs floats: x is {x.dtype}")
    if x.ndim < 1 or scale.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"layer_norm of x {x.shape} needs scale and bias of its last axis alone: "
            f"{scale.shape} and {bias.shape}"
        )
    return _norm(x, scale, bias, eps, jnp.dtype(dtype or x.dtype), impl)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _norm(x, scale, bias, eps, dtype, impl):
    return _norm_fwd(x, scale, bias, eps, dtype, impl)[0]


def _norm_fwd(x, scale, bias, eps, dtype, impl):
    y, mean, rstd = _FORWARD(
        x, scale, bias, dtypes=(dtype, jnp.float32, jnp.float32), impl=impl, eps=eps
    )
    # A leaf of no size carries the dtype of the bias.
    return y, (x, scale, jnp.zeros(0, bias.dtype), mean, rstd)


def _norm_bwd(eps, dtype, impl, residuals, dy):
    x, scale, like, mean, rstd = residuals
    dtypes = (x.dtype, scale.dtype, like.dtype)
    return _BACKWARD(dy, x, scale, mean, rstd, dtypes=dtypes, impl=impl)


_norm.defvjp(_norm_fwd, _norm_bwd)


def _forward(tile: Tile, x, scale, bias, *, eps):
    x = x.astype(jnp.float32)
    mean = tile.sum_columns(x) / tile.shape[-1]
    x = x - mean
    rstd = jax.lax.rsqrt(tile.sum_columns(x * x) / tile.shape[-1] + eps)
    y = x * rstd * scale.astype(jnp.float32) + bias.astype(jnp.float32)
    return y, mean, rstd


def _backward(tile: Tile, dy, x, scale, mean, rstd):
    dy = dy.astype(jnp.float32)
    xhat = (x.astype(jnp.float32) - mean) * rstd
    g = dy * scale.astype(jnp.float32)
    along = tile.sum_columns(g * xhat) / tile.shape[-1]
    dx = (g - tile.sum_columns(g) / tile.shape[-1] - xhat * along) * rstd
    return dx, tile.sum_rows(dy * xhat), tile.sum_rows(dy)


_FORWARD = Kernel(
    "layer_norm", _forward, ("each", "column", "column"), ("each", "row", "row")
)
_BACKWARD = Kernel(
    "layer_norm_backward",
    _backward,
    ("each", "each", "column", "row", "row"),
    ("each", "column", "column"),
)
