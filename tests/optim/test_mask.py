import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.core.tree import where
from splitjax.optim.mask import mask_updates

PARAMS = {"core": jnp.ones((2, 3)), "rest": jnp.ones((2, 3))}


def run(tx, params, steps, numbered=True):
    """Parameters after each step of noise as gradients."""

    def step(carry, number):
        params, opt = carry
        grads = jax.tree.map(
            lambda p: jax.random.normal(jax.random.key(number), p.shape), params
        )
        more = {"step": number} if numbered else {}
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
            updates, opt = tx.update(grads, opt, params, **more)
        params = optax.apply_updates(params, updates)
        return (params, opt), params

    start = (params, tx.init(params))
    (_, opt), seen = jax.jit(
        lambda start: jax.lax.scan(step, start, jnp.arange(steps))
    )(start)
    return opt, seen


def changed(seen, start):
    whole = jnp.concatenate([start[None], seen])
    return np.asarray(whole[1:] != whole[:-1])


@pytest.mark.parametrize("numbered", [True, False], ids=["step=", "counted"])
def test_a_masked_update_under_adam_moves_nothing_at_all(numbered, key):
    """(f) 7 of MPOE: 2,000 steps at p = .75."""
    tx = mask_updates(optax.adam(1e-2), "core", 0.75, key=key)
    _, seen = run(tx, PARAMS, 2000, numbered)
    core = changed(seen["core"], PARAMS["core"])
    one = core.any((1, 2))
    assert abs(one.mean() - 0.25) < 0.03
    assert (core == one[:, None, None]).mean() > 0.999  # all of a leaf, or nothing
    assert changed(seen["rest"], PARAMS["rest"]).any((1, 2)).all()


def test_moments_of_a_masked_leaf_stay(key):
    tx = mask_updates(optax.adam(1e-2), "core", 1.0, key=key)
    opt, seen = run(tx, PARAMS, 5)
    adam = opt.inner[0]
    assert not adam.mu["core"].any() and adam.mu["rest"].all()
    assert not adam.nu["core"].any() and int(adam.count) == 5
    assert (seen["core"] == 1).all()


def test_without_a_chance_it_is_the_inner_one(key):
    inner = optax.adamw(1e-2, mask=where("rest"))  # some of its state is masked
    _, found = run(mask_updates(inner, "core", 0.0, key=key), PARAMS, 5)
    _, want = run(optax.with_extra_args_support(inner), PARAMS, 5)
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_two_leaves_have_two_coins_and_elements_their_own(key):
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    _, seen = run(mask_updates(optax.sgd(1.0), "a|b", 0.5, key=key), params, 64)
    a, b = (changed(seen[n], params[n]).any((1, 2)) for n in "ab")
    assert (a != b).any()
    tx = mask_updates(optax.sgd(1.0), "a", 0.5, key=key, element=True)
    _, seen = run(tx, params, 64)
    share = changed(seen["a"], params["a"])
    assert abs(share.mean() - 0.5) < 0.07 and share[0].any() and not share[0].all()


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability(rate, key):
    with pytest.raises(ValueError, match="from 0 to 1"):
        mask_updates(optax.sgd(1.0), "core", rate, key=key)


def test_a_mask_of_nothing(key):
    with pytest.raises(ValueError, match="(?s)cor.*core"):
        mask_updates(optax.sgd(1.0), "cor", 0.5, key=key).init(PARAMS)
    nothing = lambda params: jax.tree.map(lambda _: False, params)  # noqa: E731
    with pytest.raises(ValueError, match="nothing is chosen"):
        mask_updates(optax.sgd(1.0), nothing, 0.5, key=key).init(PARAMS)
