"""The end of a block with `splitjax.kernels`: what follows a dense layer, at once."""

import jax
from flax import linen as nn

from splitjax.kernels import bias_dropout_skip


def dropped_on(
    module: nn.Module,
    made: tuple[jax.Array, jax.Array],
    skip: jax.Array,
    rate: float,
    *,
    train: bool,
    impl: str,
) -> jax.Array:
    """skip + dropout(x + bias) of a dense layer's x and bias.

    Args:
      module: whose stream "dropout" gives the key; within its compact call.
      made: what a `Dense` with `apart=True` gives.
      skip: (..., D); the result has its dtype.
      rate: of dropout.
      train: whether something is dropped.
      impl: see `kernels.kernel.Kernel`.

    Example:
      >>> import jax.numpy as jnp
      >>> x, bias = jnp.ones((2, 3)), jnp.ones(3)
      >>> how = {"train": False, "impl": "xla"}
      >>> dropped_on(nn.Module(), (x, bias), x, 0.5, **how).tolist()
      [[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]
    """
    x, bias = made
    if not (train and rate):
        return bias_dropout_skip(x, bias, skip, impl=impl)
    key = module.make_rng("dropout")
    return bias_dropout_skip(x, bias, skip, key, rate=rate, impl=impl)
