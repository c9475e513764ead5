import jax
import jax.numpy as jnp
import optax
import pytest

from splitjax.optim.apply import apply_updates

CODES = jnp.array([0, 7, 255], jnp.uint8)
PARAMS = {"kernel": {"codes": CODES, "scale": jnp.ones(3)}}
GRADS = jax.tree.map(jnp.zeros_like, PARAMS)


@pytest.mark.parametrize("tx", [optax.adamw(0.1), optax.sgd(0.1)])
def test_an_optimizer_of_floats_does_not_round_its_updates_into_codes(tx):
    """AdamW's decay alone would make 254 of 255, without a word."""
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
        with pytest.raises(TypeError, match="'kernel/codes', which is uint8.*only_ad"):
            apply_updates(PARAMS, updates)


def test_zeros_of_their_dtype_leave_codes_as_they_are():
    updates = {"kernel": {"codes": jnp.zeros_like(CODES), "scale": jnp.ones(3)}}
    new = apply_updates(PARAMS, updates)["kernel"]
    assert new["codes"].tolist() == CODES.tolist() and new["codes"].dtype == jnp.uint8
    assert new["scale"].tolist() == [2.0] * 3
