"""Bounds follow gradient and momentum, and stay where nothing is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.core.tap import BOUND, Noise, bound_of, tap_bound
from splitjax.optim import adapt_bounds
from splitjax.optim.adapt_bounds import noise_bound
from splitjax.optim.clip import clip_by_global_norm

PARAMS = {
    "a": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2), BOUND: tap_bound(1.0)},
    "b": {"kernel": jnp.ones((2, 2)), BOUND: tap_bound(1.0), "tap_other": jnp.ones(3)},
}


def noise(squares=12.0, gradient=8.0, rows=4.0):
    rest = dict(gradients=8.0, nonzero=5.0, values=10.0, missed=0.0)
    rest.update(log2=0.0, squares=squares, gradient=gradient, rows=rows)
    return jnp.stack([jnp.float32(rest[name]) for name in Noise._fields])


def gradient(scale=1.0, **kwargs):
    return {
        "a": {
            "kernel": scale * jnp.full((3, 2), 3.0),
            "bias": jnp.full(2, 100.0),
            BOUND: noise(**kwargs),
        },
        "b": {
            "kernel": jnp.full((2, 2), -6.0),
            BOUND: noise(**kwargs),
            "tap_other": jnp.full(3, 7.0),
        },
    }


def bounds(tx, grads, *, params=PARAMS, state=None, step=0):
    state = tx.init(params) if state is None else state
    updates, state = tx.update(grads, state, params, step=step)
    new = optax.apply_updates(params, updates)
    return [float(bound_of(new[name][BOUND])) for name in "ab"], updates, state


def test_each_layer_has_its_own_kernel_s_momentum():
    """Of its kernel, not of its bias: target * 3 / 2 and target * 6 / 2."""
    found, updates, _ = bounds(adapt_bounds(optax.sgd(1, 0.9), target=0.1), gradient())
    np.testing.assert_allclose(found, [0.15, 0.3], rtol=1e-5)
    assert not updates["b"]["tap_other"].any()


def test_the_inner_transformation_sees_no_tap():
    inner = optax.chain(clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.1))
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
        found, updates, state = bounds(adapt_bounds(inner), gradient())
    mu = optax.tree_utils.tree_get(state, "mu")
    assert mu["a"][BOUND] is None and mu["b"]["tap_other"] is None
    plain = {"kernel": PARAMS["a"]["kernel"], "bias": PARAMS["a"]["bias"]}
    plain = {"a": plain, "b": {"kernel": PARAMS["b"]["kernel"]}}
    grads = {n: {k: gradient()[n][k] for k in plain[n]} for n in plain}
    with jax.numpy_dtype_promotion("standard"):
        want, _ = inner.update(grads, inner.init(plain), plain)
    np.testing.assert_array_equal(updates["a"]["kernel"], want["a"]["kernel"])


def test_laws_of_the_formula():
    one = jnp.float32(1)
    base = float(noise_bound(Noise(*noise()), one))
    # Twice the rows with gradients of the same size have twice the sum of squares.
    assert float(noise_bound(Noise(*noise(24.0)), one)) == pytest.approx(base / 2**0.5)
    # Twice the loss has four times that.
    assert float(noise_bound(Noise(*noise(48.0)), one)) == pytest.approx(base / 2)
    assert float(noise_bound(Noise(*noise()), 2 * one)) == pytest.approx(base * 2)
    fitted = float(noise_bound(Noise(*noise()), one, a=0.32))
    assert fitted == pytest.approx(0.01 / (0.32 * 1.0 * (4 * 0.5) ** 0.5))
    rows = float(noise_bound(Noise(*noise(rows=8.0)), one, a=0.32))
    assert rows == pytest.approx(fitted / 2**0.5)
    loss = float(noise_bound(Noise(*noise(gradient=16.0)), one, a=0.32))
    assert loss == pytest.approx(fitted / 2)


def test_without_momentum_there_is_the_floor():
    tx = adapt_bounds(optax.sgd(1, 0.9), floor=1e-3)
    found, _, _ = bounds(tx, gradient(scale=0.0))
    assert found[0] == pytest.approx(1e-3, rel=1e-5)
    tx = adapt_bounds(optax.sgd(1, 0.9), target=1e9, ceiling=50.0)
    assert bounds(tx, gradient())[0][0] == pytest.approx(50, rel=1e-5)


@pytest.mark.parametrize("squares", [0.0, np.nan, np.inf])
def test_where_nothing_is_known_a_bound_stays(squares):
    found, updates, _ = bounds(
        adapt_bounds(optax.sgd(1, 0.9)), gradient(squares=squares)
    )
    if squares == np.inf:  # no noise is allowed then, and that is the floor
        assert found == pytest.approx([1e-6, 1e-6], rel=1e-4)
    else:
        assert found == [1.0, 1.0]
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(updates))


def test_bounds_change_every_so_many_steps():
    tx = adapt_bounds(optax.sgd(1, 0.9), every=3)
    for step, moves in [(0, True), (1, False), (2, False), (3, True)]:
        found = bounds(tx, gradient(), step=step)[0]
        assert (found != [1.0, 1.0]) == moves
    state, moved = tx.init(PARAMS), []  # without a step it counts
    for _ in range(4):
        updates, state = tx.update(gradient(), state, PARAMS)
        moved.append(bool(updates["a"][BOUND].any()))
    assert moved == [True, False, False, True]


def test_many_orders_of_magnitude_in_one_step():
    params = jax.tree.map(lambda a: a, PARAMS)
    params["a"][BOUND] = tap_bound(1e20)
    found = bounds(adapt_bounds(optax.sgd(1, 0.9)), gradient(), params=params)[0]
    assert found[0] == pytest.approx(0.015, rel=1e-4)


@pytest.mark.parametrize(
    "wrong", [dict(target=0), dict(every=0), dict(floor=0), dict(floor=2, ceiling=1)]
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        adapt_bounds(optax.adam(1), **wrong)
    with pytest.raises(ValueError, match="a=-1"):
        adapt_bounds(optax.adam(1), a=-1)


def test_what_cannot_be_adapted_is_named():
    with pytest.raises(ValueError, match="momentum"):
        adapt_bounds(optax.sgd(1)).init(PARAMS)
    with pytest.raises(ValueError, match="kernel"):
        adapt_bounds(optax.adam(1)).init({"kernel": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="no kernel beside a/"):
        adapt_bounds(optax.adam(1)).init({"a": {BOUND: tap_bound(1.0)}})
    with pytest.raises(ValueError, match="needs params"):
        tx = adapt_bounds(optax.adam(1))
        tx.update(gradient(), tx.init(PARAMS))
