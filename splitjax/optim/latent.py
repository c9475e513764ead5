"""Latent weights, of which a layer reads the signs, stay between -1 and 1."""

import jax
import jax.numpy as jnp
import optax


def clip_latent(bound: float = 1.0) -> optax.GradientTransformationExtraArgs:
    """Shortens updates so that parameters end within [-bound, bound].

    The last of a chain, on binary layers alone: a latent weight far outside would take
    many steps to change its sign, and beyond 1 its gradient is zero.

    Args:
      bound: above 0.

    Returns:
      A transformation that needs `params`.

    Raises:
      ValueError: for a bound that is not above 0, and on use without params.

    Example:
      >>> from splitjax.core.tree import where
      >>> bounded = optax.masked(clip_latent(), where(".*/latent"))
      >>> tx = optax.chain(optax.sgd(1.0), bounded)
      >>> params = {"binary": {"latent": jnp.array([0.5])}}
      >>> g = {"binary": {"latent": jnp.array([-3.0])}}
      >>> updates, _ = tx.update(g, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["binary"]["latent"].tolist()
      [1.0]

    Reference:
      M. Courbariaux, Y. Bengio, J.-P. David, "BinaryConnect", 2015, arXiv:1511.00363,
      section 2.4.
    """
    if not bound > 0:
        raise ValueError(f"clip_latent(bound={bound}): above 0")

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("clip_latent needs the parameters: update(..., params)")

        def one(u, p):
            return jnp.clip(p + u, -bound, bound) - p

        return jax.tree.map(one, updates, params), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)
