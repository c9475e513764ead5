"""A scale of the loss that keeps float16 gradients from vanishing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from splitjax.core.tree import Tree


class LossScaleState(NamedTuple):
    """State of `loss_scale`.

    Attributes:
      inner: of the wrapped transformation.
      scale: float32, what the next loss is to be multiplied by.
      good: int32, finite steps since it last changed.
    """

    inner: Tree
    scale: jax.Array
    good: jax.Array


def loss_scale(
    inner: optax.GradientTransformation,
    *,
    start: float = 2.0**15,
    every: int = 2000,
    least: float = 1.0,
    most: float = 2.0**24,
) -> optax.GradientTransformationExtraArgs:
    """Optimizes by gradients of `state.scale * loss`, with a scale that finds itself.

    Gradients below 6e-8 are zero in float16; a scale lifts them, and is taken out again
    here, in float32. Where one is not finite the step is left out, the state inside
    too, and the scale is halved; after `every` finite steps it is doubled. bfloat16 has
    the exponents of float32 and needs none of this.

    Args:
      inner: any transformation; it sees float32 gradients without the scale.
      start: the first scale.
      every: finite steps before it is doubled.
      least: it is not halved below.
      most: it is not doubled above. Without an end it would grow to infinity where
        gradients are small, and no halving leads back from there.

    Returns:
      A transformation to be called with scaled gradients, whose state has the next
      `scale`. Updates are float32.

    Raises:
      ValueError: for numbers out of range.

    Example:
      >>> tx, p = loss_scale(optax.sgd(1.0), start=1024.0), jnp.float32(0)
      >>> state = tx.init(p)
      >>> update, state = tx.update(jax.grad(lambda p: state.scale * 3 * p)(p), state)
      >>> float(update), float(state.scale)
      (-3.0, 1024.0)
      >>> update, state = tx.update(jnp.float32(jnp.inf), state)
      >>> float(update), float(state.scale)
      (0.0, 512.0)

    Reference:
      P. Micikevicius et al., Mixed Precision Training, 2017 (arXiv:1710.03740), section
      3.2.

    Differs:
      nothing; the doubling and halving are those of the common libraries, whose scale
      has no upper end.
    """
    if not 0 < least <= start <= most < float("inf") or every < 1:
        raise ValueError(
            f"loss_scale({start=}, {every=}, {least=}, {most=}): expected 0 < least <= "
            "start <= most, all finite, and every from 1 on"
        )
    inner = optax.with_extra_args_support(inner)

    def init(params):
        return LossScaleState(inner.init(params), jnp.float32(start), jnp.int32(0))

    def update(updates, state, params=None, **extra):
        grads = jax.tree.map(lambda g: g.astype(jnp.float32) / state.scale, updates)
        sums = [jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]
        finite = jnp.stack(sums).all() if sums else jnp.bool_(True)
        made, after = inner.update(grads, state.inner, params, **extra)
        made = jax.tree.map(lambda u: jnp.where(finite, u, jnp.zeros_like(u)), made)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), after, state.inner)
        good = jnp.where(finite, state.good + 1, 0)
        grow = good >= every
        scale = jnp.where(grow, jnp.minimum(state.scale * 2, most), state.scale)
        scale = jnp.where(finite, scale, jnp.maximum(state.scale / 2, least))
        return made, LossScaleState(kept, scale, jnp.where(grow, 0, good))

    return optax.GradientTransformationExtraArgs(init, update)
