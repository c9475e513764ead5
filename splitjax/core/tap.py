"""Taps bring a statistic of the backward pass out as the gradient of a zero leaf."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from splitjax.core.tree import Tree, path_name

TAP = "tap_"
BOUND = TAP + "bound"


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
      The trick of a zero leaf. K-FAC's factors (`optim.curvature`) and COMET's sums
      (`codecs.residual`) come out so too, by rules of their own.
    """
    return y


def _forward(statistic, y, leaf):
    return y, (y, leaf)


def _backward(statistic, kept, g):
    y, leaf = kept
    return g, statistic(y, g).astype(leaf.dtype)


tap.defvjp(_forward, _backward)


class Noise(NamedTuple):
    """What a leaf "tap_bound" holds, in this order: a bound, and its statistics.

    In params all but the first are zero; in its cotangent the first is. All statistics
    are sums, so those of micro-batches add up.

    Attributes:
      log2: of the bound on the error of a layer's input. (So that updates, which are
        added, can change it by orders of magnitude.)
      squares: the share of the input that is not zero, times the sum of the squares of
        the output's gradient for each channel.
      gradient: the sum of the magnitudes of that gradient.
      gradients: how many they are.
      rows: of the batch.
      nonzero: how many values of the input are not zero.
      values: how many there are.
      missed: how many were off by more than the bound.
    """

    log2: jax.Array
    squares: jax.Array
    gradient: jax.Array
    gradients: jax.Array
    rows: jax.Array
    nonzero: jax.Array
    values: jax.Array
    missed: jax.Array


def tap_bound(eb: float) -> jax.Array:
    """A leaf "tap_bound" of this bound; see `Noise`.

    Example:
      >>> round(float(bound_of(tap_bound(0.25))), 3)
      0.25
    """
    if not 2.0**-99 <= eb <= 2.0**99:
        raise ValueError(f"tap_bound({eb}): a bound is from 2^-99 to 2^99")
    return jnp.zeros(len(Noise._fields)).at[0].set(math.log2(eb))


def bound_of(leaf: jax.Array) -> jax.Array:
    """The bound that a leaf "tap_bound" holds.

    Example: see `tap_bound`.
    """
    return jnp.exp2(leaf[0])


def without_taps(tree: Tree) -> Tree:
    """Puts None where a tap stands.

    Example:
      >>> without_taps({"kernel": 1.0, "tap_g": 2.0})
      {'kernel': 1.0, 'tap_g': None}
    """

    def one(path, leaf):
        return None if path_name(path).split("/")[-1].startswith(TAP) else leaf

    return jax.tree_util.tree_map_with_path(one, tree)
