"""Clipping by a norm that may have been summed over several parties."""

import jax
import jax.numpy as jnp
import optax

from splitjax.core.tap import without_taps
from splitjax.core.tree import Tree


def square_norm(tree: Tree) -> jax.Array:
    """The sum of squares of all leaves but taps, in float32.

    Example:
      >>> import jax.numpy as jnp
      >>> float(square_norm({"a": jnp.array([3.0, 4.0])}))
      25.0
    """
    leaves = jax.tree.leaves(without_taps(tree))
    return sum(
        (jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves),
        start=jnp.float32(0),
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Scales updates by min(1, max_norm / norm).

    Args:
      max_norm: the largest norm that passes, above 0.

    Returns:
      A transformation that reads `sq_norm=`, the square of the norm over all parties.
      Without it the norm is that of the given updates alone: per party, where a model
      is cut.

    Raises:
      ValueError: when max_norm is not above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_global_norm(1.0)
      >>> updates, _ = tx.update({"w": jnp.array([3.0, 4.0])}, tx.init({}))
      >>> [round(float(u), 3) for u in updates["w"]]
      [0.6, 0.8]
      >>> updates, _ = tx.update({"w": jnp.array([3.0, 4.0])}, (), sq_norm=100.0)
      >>> [round(float(u), 3) for u in updates["w"]]
      [0.3, 0.4]

    Reference:
      Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks,
      2013, arXiv 1211.5063, algorithm 1.
    Differs:
      nothing for one party.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0: {max_norm}")

    def update(updates, state, params=None, *, sq_norm=None, **extra):
        total = square_norm(updates) if sq_norm is None else sq_norm
        norm = jnp.sqrt(jnp.asarray(total, jnp.float32))
        scale = jnp.where(norm > max_norm, max_norm / norm, jnp.float32(1))

        def one(g, kept):  # a tap is no gradient: it passes as it is
            return g if kept is None else g * scale.astype(g.dtype)

        return jax.tree.map(one, updates, without_taps(updates)), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)
