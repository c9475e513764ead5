"""A dense layer whose kernel may be a factor."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.core.factor import cast_floats, dot
from splitjax.models.weight import weight
from splitjax.optim.curvature import TAPS, watch


class Dense(nn.Module):
    """y = x @ kernel + bias, the kernel dense or a `Factor`.

    Parameters: `kernel` (I, J) and `bias` (J,), of float32; for K-FAC a node
    `tap_kfac` beside them (`optim.with_taps`).

    Attributes:
      features: J, the width of the output.
      use_bias: whether there is a bias.
      dtype: what it computes in, and the dtype of the output.
      kernel_init: of a dense kernel.
      apart: whether the call gives (x @ kernel, bias), for a kernel of
        `splitjax.kernels` to join; the bias is float32 then.

    Raises:
      ValueError: when a kernel has another shape than (I, J).

    Example:
      >>> layer = Dense(2)
      >>> variables = layer.init(jax.random.key(0), jnp.ones((4, 3)))
      >>> layer.apply(variables, jnp.ones((4, 5, 3))).shape
      (4, 5, 2)
    """

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    apart: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        """Applies the layer to x (..., I), whose dtype may be any float."""
        shape = (x.shape[-1], self.features)
        kernel = weight(self, "kernel", shape, self.kernel_init)
        cast = cast_floats(kernel, self.dtype)
        taps = self.get_variable("params", TAPS)
        y = watch(lambda x: dot(cast, x), x.astype(self.dtype), taps)
        if self.use_bias:
            bias = self.param(
                "bias", nn.initializers.zeros, (self.features,), jnp.float32
            )
            if self.apart:
                return y, bias
            y = y + jnp.expand_dims(bias.astype(self.dtype), tuple(range(y.ndim - 1)))
        return y
