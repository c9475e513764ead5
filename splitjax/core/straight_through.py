"""A sign that gradients pass: for codecs, binary layers, and who imitates them."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def ste_sign(x: jax.Array) -> jax.Array:
    """The sign, 1 or -1, with the gradient of a hard tanh: `g * (|x| <= 1)`.

    Zero has sign 1, and so has a NaN, whose gradient is zero.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.array([-2.0, -0.5, 0.0])
      >>> y, pull = jax.vjp(ste_sign, x)
      >>> y.tolist(), pull(jnp.full(3, 7.0))[0].tolist()
      ([-1.0, -1.0, 1.0], [0.0, 7.0, 7.0])

    Reference:
      I. Hubara et al., "Binarized Neural Networks", 2016, arXiv:1602.02830, eq. (4).
    """
    return jnp.where(x < 0, jnp.array(-1, x.dtype), jnp.array(1, x.dtype))


def _ste_forward(x):
    return ste_sign(x), jnp.abs(x) <= jnp.array(1, x.dtype)


def _ste_backward(inside, gradient):
    return (jnp.where(inside, gradient, jnp.zeros_like(gradient)),)


ste_sign.defvjp(_ste_forward, _ste_backward)
