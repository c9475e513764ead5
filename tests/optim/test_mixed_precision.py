"""Parameters of 16 bits: steps that rounding to the nearest would lose."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.optim import mixed_precision
from splitjax.optim.mixed_precision import round_stochastically

BF16 = jnp.bfloat16


def test_rounding_is_right_in_the_mean(key):
    """Each value goes to one of its two neighbors, in the right proportion."""
    for value in (1.0 + 2.0**-9, -3.3, 1e-30, 0.1):
        x = jnp.full(20_000, value, jnp.float32)
        y = np.asarray(round_stochastically(x, key), np.float64)
        below, above = np.unique(y) if np.unique(y).size == 2 else (y[0], y[0])
        assert below < np.float32(value) < above
        share = (np.float32(value) - below) / (above - below)
        # Four deviations of the mean of 20,000 coins.
        bound = 4 * (share * (1 - share) / 20_000) ** 0.5 + 2**-16
        assert abs((y == above).mean() - share) < bound


def test_what_is_exact_stays_and_what_is_no_number_too(key):
    x = jnp.array([0.0, -0.0, 1.5, -(2.0**-120), jnp.inf, -jnp.inf, jnp.nan])
    y = round_stochastically(x, key).astype(jnp.float32)
    np.testing.assert_array_equal(y, x)


def _fall(rounding, steps=300):
    """SGD on f = x from 1 by 1e-4: in float32 it ends at 1 - steps / 1e4."""
    more = {"key": jax.random.key(0)} if rounding == "stochastic" else {}
    tx = mixed_precision(optax.sgd(1e-4), rounding=rounding, **more)
    params = {"w": jnp.ones(2000, BF16), "norm": jnp.ones(3)}
    grads = jax.tree.map(jnp.ones_like, params)

    def step(_, carry):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(lambda carry: jax.lax.fori_loop(0, steps, step, carry))
    params, state = run((params, tx.init(params)))
    assert params["w"].dtype == BF16 and params["norm"].dtype == jnp.float32
    np.testing.assert_allclose(params["norm"], 1 - steps / 1e4, rtol=1e-5)
    return float(params["w"].astype(jnp.float32).mean()), state


def test_small_steps_are_taken():
    """A step is a twentieth of what a bfloat16 near 1 can tell."""
    assert _fall("nearest")[0] == 1.0
    copied, state = _fall("copy")
    # The copy moves as float32 does, and is rounded to 2^-8 for use.
    np.testing.assert_allclose(state.copy["w"], 0.97, rtol=1e-5)
    assert abs(copied - 0.97) < 2**-9
    mean, state = _fall("stochastic")
    # Steps of 2^-8 by coins: 300 x 0.0256 of them, over 2000 places.
    assert abs(mean - 0.97) < 4 * 2**-8 * (300 * 0.0256 / 2000) ** 0.5
    assert state.copy == () and int(state.count) == 300


def test_a_copy_is_of_bfloat16_leaves_alone():
    """So parameters and state share no buffer, and a step can use both up."""
    tx = mixed_precision(optax.sgd(1e-2), rounding="copy")
    params = {"w": jnp.ones(3, BF16), "norm": jnp.ones(3)}
    state = tx.init(params)
    assert [leaf.shape for leaf in jax.tree.leaves(state.copy)] == [(3,)]

    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(2):
        params, state = step(params, state)
    np.testing.assert_allclose(params["norm"], 0.98, rtol=1e-6)
    np.testing.assert_allclose(state.copy["w"], 0.98, rtol=1e-6)


def test_parameters_changed_elsewhere_are_not_undone():
    """A projection: what it moved goes on from there, the rest from its copy."""
    tx = mixed_precision(optax.sgd(1e-3), rounding="copy")
    params = {"w": jnp.ones(2, BF16)}
    grads, state, step = {"w": jnp.ones(2, BF16)}, tx.init(params), jax.jit(tx.update)
    _, state = step(grads, state, params)  # too small to be seen: 1 is the rounding
    moved = {"w": jnp.array([0.25, 1.0], BF16)}
    updates, state = step(grads, state, moved)
    # The least steps of a bfloat16 below 1/4 and below 1 are 2^-10 and 2^-8.
    np.testing.assert_allclose(state.copy["w"], [0.249, 0.998], rtol=1e-6)
    new = optax.apply_updates(moved, updates)["w"].astype(jnp.float32)
    np.testing.assert_array_equal(new, [0.25 - 2**-10, 1 - 2**-8])


def test_moments_are_float32_and_steps_are_adams():
    """One step of Adam from a bfloat16 is that of float32, rounded to a neighbor."""
    params = {"w": jnp.linspace(-2, 2, 64).astype(BF16)}
    grads = {"w": jnp.cos(jnp.arange(64.0)).astype(BF16)}
    tx = mixed_precision(optax.adam(0.1), key=jax.random.key(1))
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
        updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    assert updates["w"].dtype == BF16
    assert {m.dtype.name for m in jax.tree.leaves(state.inner[0].mu)} == {"float32"}
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (params, grads))
    with jax.numpy_dtype_promotion("standard"):
        moved, _ = optax.adam(0.1).update(wide[1], optax.adam(0.1).init(wide[0]))
    want = np.asarray(wide[0]["w"] + moved["w"], np.float32)
    new = np.asarray(optax.apply_updates(params, updates)["w"], np.float32)
    # A bfloat16 is at most 2^-7 of its size from the next one.
    assert (np.abs(new - want) <= 2.0**-7 * np.abs(want) + 1e-6).all()


def test_the_noise_is_a_function_of_key_and_step():
    params, grads = {"w": jnp.ones(500, BF16)}, {"w": jnp.ones(500, BF16)}

    def updates(seed, step):
        tx = mixed_precision(optax.sgd(1e-3), key=jax.random.key(seed))
        made, _ = tx.update(grads, tx.init(params), params, step=step)
        return np.asarray(made["w"], np.float32)

    first = updates(0, 3)
    np.testing.assert_array_equal(first, updates(0, 3))
    assert (first != updates(0, 4)).any() and (first != updates(1, 3)).any()


def test_bad_inputs():
    with pytest.raises(ValueError, match="rounding='up'"):
        mixed_precision(optax.sgd(0.1), rounding="up")
    with pytest.raises(ValueError, match="needs a key"):
        mixed_precision(optax.sgd(0.1))
    tx = mixed_precision(optax.sgd(0.1), rounding="nearest")
    with pytest.raises(ValueError, match="needs params"):
        tx.update({"w": jnp.ones(1)}, tx.init({"w": jnp.ones(1)}))
