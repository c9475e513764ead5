"""Taps bring a statistic of the backward pass out as the gradient of a zero leaf."""

from collections.abc import Callable
from functools import partial

import jax

from splitjax.core.tree import Tree, path_name

TAP = "tap_"


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def tap(statistic: Callable, y: jax.Array, leaf: jax.Array) -> jax.Array:
    """Passes `y` on, and makes `statistic(y, g)` the cotangent of `leaf`.

    The transform of updates that asked for the statistic reads it where the gradient of
    the leaf stands, and returns a zero update there. Leaves are named "tap_...", so
    that clips, averages and exports leave them out (`without_taps`).

    Args:
      statistic: `(y, g) -> array` of the leaf's shape, with g the cotangent of y.
      y: any array.
      leaf: zeros of the statistic's shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> squares = lambda y, g: (g * g).sum()
      >>> f = lambda leaf, x: (3 * tap(squares, x, leaf)).sum()
      >>> float(jax.grad(f)(jnp.float32(0), jnp.ones(2)))
      18.0

    Reference:
      The trick of a zero leaf; used for K-FAC's factors and COMET's sum of g^2.
    """
    return y


def _forward(statistic, y, leaf):
    return y, (y, leaf)


def _backward(statistic, kept, g):
    y, leaf = kept
    return g, statistic(y, g).astype(leaf.dtype)


tap.defvjp(_forward, _backward)


def without_taps(tree: Tree) -> Tree:
    """Puts None where a tap stands.

    Example:
      >>> without_taps({"kernel": 1.0, "tap_g": 2.0})
      {'kernel': 1.0, 'tap_g': None}
    """

    def one(path, leaf):
        return None if path_name(path).split("/")[-1].startswith(TAP) else leaf

    return jax.tree_util.tree_map_with_path(one, tree)
