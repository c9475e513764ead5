"""A relu and a pool that keep a mask of bits for their backward pass, and no values."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from splitjax.codecs.pack import pack_bits, unpack_bits
from splitjax.core.tree import Tree


def when_there(pull: Callable, *args: Tree) -> Tree:
    """`pull(*args)`; zeros where the last of them, a gradient, is all zeros.

    The branch is what saves memory. Without it XLA may decode before the gradient is
    there, or not even encode, and keep the values in full. (On CPUs it drops
    `optimization_barrier` before it decides that.)

    Args:
      pull: linear in its last argument.
      *args: what was kept, then the gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> when_there(lambda kept, g: kept * g, jnp.ones(2), jnp.zeros(2)).tolist()
      [0.0, 0.0]
    """
    made = jax.eval_shape(pull, *args)

    def zeros(*args):
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), made)

    return jax.lax.cond(jnp.any(args[-1] != 0), pull, zeros, *args)


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), keeping one bit for each value.

    The mask is of the values themselves, not of what a codec made of them: the gradient
    is exact. (`jax.nn.relu` keeps a byte for each.)

    Args:
      x: floats of any shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> jax.grad(lambda x: relu(x).sum())(jnp.array([-1.0, 0.0, 2.0])).tolist()
      [0.0, 0.0, 1.0]
    """
    return jnp.maximum(x, jnp.zeros_like(x))


def _relu_forward(x):
    return relu(x), pack_bits((x > 0).astype(jnp.uint8).reshape(-1), 1)


def _relu_backward(packed, g):
    def pull(packed, g):
        mask = unpack_bits(packed, 1, g.size).reshape(g.shape)
        return jnp.where(mask > 0, g, jnp.zeros_like(g))

    return (when_there(pull, packed, g),)


relu.defvjp(_relu_forward, _relu_backward)


def max_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """The greatest value of each window, keeping the number of its place.

    A window of 2x2 keeps two bits. Where several are the greatest, the first is.

    Args:
      x: `(B, H, W, C)`, H and W multiples of the size.
      size: of the window and of its stride, 1 to 16.

    Returns:
      `(B, H / size, W / size, C)`.

    Raises:
      ValueError: for another shape or size.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
      >>> float(max_pool(x).sum())
      3.0
      >>> jax.grad(lambda x: max_pool(x).sum())(x).reshape(-1).tolist()
      [0.0, 0.0, 0.0, 1.0]
    """
    if not 1 <= size <= 16 or x.ndim != 4 or x.shape[1] % size or x.shape[2] % size:
        raise ValueError(
            f"max_pool(size={size}) of {x.shape}: expected (B, H, W, C) with H and W "
            "multiples of a size from 1 to 16"
        )
    return _pool(size, x)


def _pool_of(size, x):
    return jnp.max(_windows(size, x), axis=-1)


def _windows(size, x):
    """`(B, H / size, W / size, C, size * size)`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c)
    x = x.transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, h // size, w // size, c, size * size)


_pool = jax.custom_vjp(_pool_of, nondiff_argnums=(0,))


def _bits(size: int) -> int:
    return max(1, math.ceil(math.log2(size * size)))


def _pool_forward(size, x):
    windows = _windows(size, x)
    place = jnp.argmax(windows, axis=-1).astype(jnp.uint8)
    return jnp.max(windows, axis=-1), pack_bits(place.reshape(-1), _bits(size))


def _pool_backward(size, packed, g):
    def pull(packed, g):
        place = unpack_bits(packed, _bits(size), g.size).reshape(*g.shape, 1)
        number = jnp.arange(size * size, dtype=jnp.uint8).reshape(1, 1, 1, 1, -1)
        spread = jnp.where(place == number, g[..., None], jnp.zeros((), g.dtype))
        b, h, w, c = g.shape
        spread = spread.reshape(b, h, w, c, size, size).transpose(0, 1, 4, 2, 5, 3)
        return spread.reshape(b, h * size, w * size, c)

    return (when_there(pull, packed, g),)


_pool.defvjp(_pool_forward, _pool_backward)
