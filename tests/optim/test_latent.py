import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.optim import clip_latent


def test_parameters_end_within_the_bound_exactly(key):
    """Not one unit beyond it, where the straight-through gradient ends."""
    params = jax.random.uniform(key, (10_000,), minval=-1.0)
    u = 3 * jax.random.normal(jax.random.fold_in(key, 1), params.shape)
    tx = clip_latent()
    updates, _ = tx.update(u, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    assert float(jnp.max(jnp.abs(new))) == 1.0
    np.testing.assert_allclose(new, np.clip(params + u, -1, 1), atol=1e-7)


def test_bad_use_raises():
    with pytest.raises(ValueError, match="above 0"):
        clip_latent(0.0)
    with pytest.raises(ValueError, match="needs the parameters"):
        clip_latent().update({}, (), None)
