"""A loss scale: what would vanish in float16 does not, and overflow costs one step."""

import jax
import jax.numpy as jnp
import optax
import pytest

from splitjax.optim import loss_scale


def test_what_vanishes_without_it():
    """A gradient of 2e-8 is zero in float16."""

    def grad(scale):
        w = jnp.float16(1)

        def loss(w):  # a chain whose cotangents are float16
            small = (w * jnp.float16(2e-4)) * jnp.float16(1e-4)
            return small.astype(jnp.float32) * scale

        return jax.grad(loss)(w)

    assert float(grad(jnp.float32(1))) == 0
    tx = loss_scale(optax.sgd(1.0))
    state = tx.init(jnp.float32(1))
    update, _ = tx.update(grad(state.scale), state)
    assert float(update) == pytest.approx(-2e-8, rel=2e-3)  # float16 has 11 bits


def test_growth_and_overflow():
    tx = loss_scale(optax.sgd(1.0, momentum=0.5), start=8.0, every=2, least=2.0)
    params = {"a": jnp.zeros(2), "b": jnp.float32(0)}
    state, step = tx.init(params), jax.jit(tx.update)

    def grads(value):
        return {"a": jnp.ones(2) * state.scale, "b": jnp.float32(value)}

    seen = []
    for value in (1.0, 1.0, jnp.inf, jnp.nan, jnp.inf, 1.0, 1.0):
        before = state
        updates, state = step(grads(value), state, params)
        seen.append(float(state.scale))
        if not jnp.isfinite(value):
            assert not updates["a"].any() and float(updates["b"]) == 0
            same = jax.tree.map(lambda a, b: bool((a == b).all()), state, before)
            assert jax.tree.all(same.inner)
    assert seen == [8, 16, 8, 4, 2, 2, 4]
    tx = loss_scale(optax.sgd(1.0), start=2.0, least=2.0)
    _, state = tx.update(jnp.float32(jnp.nan), tx.init(jnp.float32(0)))
    assert float(state.scale) == 2


def test_it_ends_before_infinity():
    """From which no halving would lead back."""
    tx = loss_scale(optax.sgd(1.0), start=2.0**100, every=1, most=2.0**127)
    state, step = tx.init(jnp.float32(0)), jax.jit(tx.update)
    for _ in range(40):
        _, state = step(jnp.float32(1), state)
    assert float(state.scale) == 2.0**127
    _, state = step(jnp.float32(jnp.inf), state)
    assert float(state.scale) == 2.0**126
    tx = loss_scale(optax.sgd(1.0), every=1)
    state, step = tx.init(jnp.float32(0)), jax.jit(tx.update)
    for _ in range(12):
        _, state = step(jnp.float32(1), state)
    assert float(state.scale) == 2.0**24


def test_bad_inputs():
    wrong = ({"start": 0.5}, {"least": 0.0}, {"every": 0}, {"most": 2.0})
    for bad in (*wrong, {"most": float("inf")}):
        with pytest.raises(ValueError, match="expected 0 < least <= start"):
            loss_scale(optax.sgd(0.1), **bad)
