"""A layer's weight: an array, or the factor that stands where it stood."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.core.factor import Factor


def weight(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    init: Callable[..., jax.Array | Factor],
) -> jax.Array | Factor:
    """A parameter of a module as it is in the tree, dense or a factor.

    Linen's own `param` compares the shapes of leaves, and so refuses a factor.

    Args:
      module: whose it is; within its compact call.
      name: of the parameter.
      shape: of the dense one.
      init: `(key, shape, dtype) -> float32 array or factor`, for a fresh one.

    Raises:
      ValueError: when what is there stands for another shape.

    Example:
      >>> class Scale(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return x * weight(self, "scale", (1,), nn.initializers.ones)
      >>> Scale().apply({"params": {"scale": jnp.full((2,), 3.0)}}, jnp.ones(1))
      Traceback (most recent call last):
      ...
      ValueError: the scale of this layer is (2,); it must be (1,), ...
    """
    if module.has_variable("params", name):
        found = module.get_variable("params", name)
    else:
        found = module.param(name, init, shape, jnp.float32)
    given = found.spec.shape if isinstance(found, Factor) else found.shape
    if given != shape:
        raise ValueError(
            f"the {name} of {'/'.join(module.path) or 'this layer'} is {given}; it "
            f"must be {shape}, which the input's width and the layer's options decide"
        )
    return found
