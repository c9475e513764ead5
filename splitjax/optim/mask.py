"""Updates that are left out by chance, for parameters that many share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from splitjax.core.keys import fold
from splitjax.core.tree import Tree, path_name, where


class MaskState(NamedTuple):
    """State of `mask_updates`.

    Attributes:
      inner: of the wrapped transformation.
      count: int32, updates so far; read where no step is given.
    """

    inner: Tree
    count: jax.Array


def mask_updates(
    inner: optax.GradientTransformation,
    choose: str | Callable[[Tree], Tree],
    rate: float,
    *,
    key: jax.Array,
    element: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Leaves out the updates of chosen leaves with a probability, each by its own coin.

    What is left out is the *update*: zero is added to the leaf, which stays the same to
    the bit, and what the inner transformation keeps of it (moments) stays, too. A zero
    gradient would not do that: Adam moves on by its momentum.

    Args:
      inner: the optimizer; it sees all gradients, so that a clip of their norm holds.
      choose: a pattern (see `core.tree.where`), or a function from the parameters to a
        tree of bools.
      rate: the probability of leaving an update out: 0 never, 1 always (frozen).
        `1 - 1/E` makes a core that E experts share move as often as each of them, where
        each is called every E-th time.
      key: a typed PRNG key; coins are folded from it, the leaf's path and the step.
      element: a coin for each element, in the place of one for the leaf.

    Returns:
      A transformation that reads `step=` (without it, it counts its updates) and needs
      params where `inner` does.

    Raises:
      ValueError: for a rate that is no probability; on init, when nothing is chosen.

    Example:
      >>> tx = mask_updates(optax.sgd(1.0), "core", 1.0, key=jax.random.key(0))
      >>> params = {"core": jnp.ones(1), "rest": jnp.ones(1)}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["core"].tolist(), updates["rest"].tolist()
      ([0.0], [-1.0])

    Reference:
      Z.-F. Gao, P. Liu, W. X. Zhao, Z.-Y. Lu, J.-R. Wen, "Parameter-Efficient
      Mixture-of-Experts Architecture for Pre-trained Language Models", 2022,
      arXiv:2203.01104, for the purpose.

    Differs:
      The paper's formula could not be checked, and its public code has no mask: coin,
      place and rate are ours. A count of steps that the inner transformation keeps once
      for all leaves (Adam's bias correction) goes on where moments do not.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate {rate}: a probability, from 0 to 1")
    inner = optax.with_extra_args_support(inner)
    chosen = where(choose) if isinstance(choose, str) else choose

    def init(params):
        if not any(jax.tree.leaves(chosen(params))):
            raise ValueError("mask_updates: nothing is chosen")
        return MaskState(inner.init(params), jnp.int32(0))

    def update(updates, state, params=None, *, step=None, **extra):
        more = extra if step is None else {**extra, "step": step}
        new, after = inner.update(updates, state.inner, params, **more)
        at = state.count if step is None else step

        def coin(path, leaf, yes):
            if not yes:
                return jnp.ones((1,) * leaf.ndim, bool)
            shape = leaf.shape if element else (1,) * leaf.ndim
            one = fold(key, "mask", path_name(path), at)
            return jax.random.bernoulli(one, 1 - rate, shape)

        coins = jax.tree_util.tree_map_with_path(coin, updates, chosen(updates))
        new = jax.tree.map(lambda u, go: jnp.where(go, u, 0), new, coins)
        moves = optax.tree.map_params(
            inner.init,
            _coin_of,
            after,
            coins,
            transform_non_params=lambda leaf: jnp.ones((1,) * leaf.ndim, bool),
            is_leaf=_is_masked,
        )
        kept = jax.tree.map(jnp.where, moves, after, state.inner)
        return new, MaskState(kept, state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_masked(node) -> bool:
    return isinstance(node, optax.MaskedNode)


def _coin_of(leaf, coin):
    """The coin of a parameter, for what is kept of it, if anything is."""
    return leaf if _is_masked(leaf) else coin
