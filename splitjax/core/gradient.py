"""Gradients where some of a tree is frozen: codes, which are no floats, or a base."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.core.tree import Tree, combine, split_floats


def with_zeros(grads: Tree, params: Tree) -> Tree:
    """A gradient of the floats of a tree, with zeros for its other leaves.

    They are zeros of a leaf's own dtype, so that sums over micro-batches and the
    transformations of an optimizer go through, and nothing is added to the leaf.

    Args:
      grads: None where the leaf of `params` is no float.
      params: the tree.

    Example:
      >>> params = {"scale": jnp.ones(1), "codes": jnp.uint8([3])}
      >>> zeros = with_zeros({"scale": jnp.ones(1), "codes": None}, params)["codes"]
      >>> zeros.tolist(), zeros.dtype.name
      ([0], 'uint8')
    """
    return combine(grads, jax.tree.map(jnp.zeros_like, split_floats(params)[1]))


def value_and_grad(loss: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.value_and_grad` in the floats of the first argument, which may hold codes.

    Args:
      loss: `(params, *args) -> scalar`.
      **options: as `jax.value_and_grad` has them, but `argnums`.

    Returns:
      `(params, *args) -> (value, gradient)`, see `with_zeros`.

    Example:
      >>> loss = lambda p: (p["scale"] * p["codes"].astype(jnp.float32)).sum()
      >>> params = {"scale": jnp.ones(1), "codes": jnp.uint8([3])}
      >>> value, grads = value_and_grad(loss)(params)
      >>> float(value), grads["scale"].tolist(), grads["codes"].tolist()
      (3.0, [3.0], [0])
    """

    def run(params, *args):
        floats, rest = split_floats(params)

        def of_floats(floats, *args):
            return loss(combine(floats, rest), *args)

        value, grads = jax.value_and_grad(of_floats, **options)(floats, *args)
        return value, with_zeros(grads, params)

    return run


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def frozen_product(
    product: Callable[[Tree, jax.Array], jax.Array], frozen: Tree, x: jax.Array
) -> jax.Array:
    """A product, linear in x, that gives no gradient to its other side.

    For the way back it keeps the frozen arrays themselves and nothing made of them,
    nor x. `jax.lax.stop_gradient` makes new arrays: `core.residuals.strip` does not
    know them for parameters, and they would be held twice between the two passes.

    Args:
      product: `(frozen, x) -> y`, a function of a module, not made anew.
      frozen: arrays.
      x: an array of floats.

    Raises:
      TypeError: on the way, for `jax.jvp`: gradients go in reverse alone.

    Example:
      >>> w, x = jnp.full((2, 2), 3.0), jnp.ones(2)
      >>> loss = lambda w, x: frozen_product(jnp.dot, w, x).sum()
      >>> jax.grad(loss, argnums=(0, 1))(w, x)[0].tolist()
      [[0.0, 0.0], [0.0, 0.0]]
      >>> jax.grad(loss, argnums=1)(w, x).tolist()
      [6.0, 6.0]
    """
    return product(frozen, x)


def _product_of(product, frozen, x):
    return product(frozen, x), (frozen, x[None][:0])


def _back(product, kept, gradient):
    frozen, none = kept
    # Zeros of x's shape, and of the same devices where a mesh maps it: they decide
    # over which the gradient is summed. Their product is not computed by a program.
    _, pull = jax.vjp(lambda x: product(frozen, x), none.sum(0))
    return None, *pull(gradient)


frozen_product.defvjp(_product_of, _back)
