"""Adam as one program for each leaf: against optax, on every kind of leaf."""

import jax
import jax.numpy as jnp
import optax
import pytest

from splitjax.kernels import adam
from tests.kernels.ways import IMPLS, assert_close, lowered, normal


def _params():
    return {
        "a": normal((7, 33)),
        "b": normal((5,), 1),
        "c": normal((), 2),
        "d": normal((2, 1, 3), 3),
    }


def _run(tx, params, steps):
    state, out = tx.init(params), []
    step = jax.jit(tx.update)
    for number in range(steps):
        grads = jax.tree.map(lambda p, n=number: jnp.sin(3 * p + n), params)
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        out.append(params)
    return out, state


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_is_optaxs(impl, decay):
    rate = optax.linear_schedule(0.1, 0.0, 8)
    ours, state = _run(adam(rate, weight_decay=decay, impl=impl), _params(), 5)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
        like, _ = _run(optax.adamw(rate, weight_decay=decay), _params(), 5)
    assert_close(ours, like)
    assert int(state.count) == 5


def test_a_tree_of_nothing():
    tx = adam(0.1, weight_decay=0.1)
    for params in ({}, {"a": optax.MaskedNode()}):
        updates, state = tx.update(params, tx.init(params), params)
        assert updates == params and state.mu == params and int(state.count) == 1


@pytest.mark.parametrize("impl", IMPLS)
def test_moments_of_half_precision_are_float32(impl):
    """So the second update, too, is optax's in float32, rounded once."""
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), _params())
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), low)
    tx, like = adam(0.1, impl=impl), optax.adam(0.1)
    state, other = tx.init(low), like.init(wide)
    ours, theirs = jax.jit(tx.update), jax.jit(like.update)
    for _ in range(2):
        updates, state = ours(low, state)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
            want, other = theirs(wide, other)
        low, wide = (jax.tree.map(jnp.negative, tree) for tree in (low, wide))
        assert_close(updates, want, jnp.bfloat16)
    assert {u.dtype.name for u in jax.tree.leaves(updates)} == {"bfloat16"}
    assert {m.dtype.name for m in jax.tree.leaves(state.mu)} == {"float32"}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_it_lowers_for_devices_that_are_not_here(platform):
    tx, params = adam(0.1, weight_decay=0.1, impl="pallas"), _params()
    text = lowered(tx.update, params, tx.init(params), params, platform=platform)
    assert text.count("custom_call @") == len(params)


def test_bad_inputs():
    for bad in ({"b1": 1.0}, {"b2": -0.1}, {"eps": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match=f"{[*bad][0]}={[*bad.values()][0]}"):
            adam(0.1, **bad)
    with pytest.raises(ValueError, match="learning_rate=0"):
        adam(0)
    with pytest.raises(ValueError, match="impl='cuda'"):
        adam(0.1, impl="cuda")
    tx = adam(0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match="needs params"):
        tx.update(_params(), tx.init(_params()))
