"""The transformation on one device: chains, clips, frequencies, and bad inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.core.tap import tap_bound, without_taps
from splitjax.core.tree import flat
from splitjax.models.dense import Dense
from splitjax.optim import (
    adapt_bounds,
    at_rank,
    clip_by_global_norm,
    dp_kfac,
    lrpet,
    with_taps,
)
from splitjax.optim.curvature import TAPS

KEY = jax.random.key(0)
LAYER = Dense(3)
X = jax.random.normal(KEY, (8, 4))
Y = jax.random.normal(jax.random.key(1), (8, 3))


def start():
    return {
        "dense": with_taps(LAYER.init(KEY, X)["params"]),
        "scale": jnp.ones(3),
    }


def loss(params, x=X):
    y = LAYER.apply({"params": params["dense"]}, x) * params["scale"][None]
    return jnp.square(y - Y).sum(-1).mean()


def run(tx, steps=1, x=X, params=None, given=False):
    """Params and state after some steps; `given`: told their numbers."""
    params = start() if params is None else params
    state = tx.init(params)

    @jax.jit
    def step(params, state, x, number):
        grads = jax.grad(loss)(params, x)
        extra = {"step": number} if given else {}
        # Optax raises a float to an integer power.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    for number in range(steps):
        params, state = step(params, state, x, number)
    return params, state


def kernel(params):
    return np.asarray(params["dense"]["kernel"])


PLAIN = {"kl_clip": None, "damping": 0.01}


def test_other_leaves_take_what_the_inner_transformation_makes():
    new, _ = run(dp_kfac(optax.sgd(0.1), **PLAIN))
    grads = jax.grad(loss)(start())
    np.testing.assert_allclose(new["scale"], 1 - 0.1 * grads["scale"], rtol=1e-6)
    assert (kernel(new) != kernel(start())).any()


def test_the_inner_transformation_sees_no_tap_and_taps_stay_zero():
    inner = optax.chain(
        clip_by_global_norm(1e-3), optax.adamw(0.1, weight_decay=0.1, eps=1e-8)
    )
    new, state = run(dp_kfac(inner, **PLAIN), 3)
    mu = optax.tree_utils.tree_get(state, "mu")
    assert mu["dense"][TAPS].tap_a is None and mu["dense"]["kernel"] is not None
    assert not any(leaf.any() for leaf in jax.tree.leaves(new["dense"][TAPS]))
    assert jax.tree.structure(without_taps(new)) == jax.tree.structure(mu)


def test_a_clip_before_scales_gradients_and_leaves_statistics():
    """So factors are those of the plain gradient, and the step is linear in it."""
    raw, small = (
        run(optax.chain(*first, dp_kfac(optax.sgd(0.1), **PLAIN)))
        for first in ((), (clip_by_global_norm(1e-2),))
    )
    states = [jax.tree.leaves(one[1][-1].curvature) for one in (raw, small)]
    for a, b in zip(*states, strict=True):
        np.testing.assert_array_equal(a, b)
    norm = optax.tree_utils.tree_norm(without_taps(jax.grad(loss)(start())))
    moved = [kernel(one[0]) - kernel(start()) for one in (raw, small)]
    np.testing.assert_allclose(moved[1], moved[0] * 1e-2 / norm, rtol=1e-3, atol=1e-7)


def test_a_projection_comes_after():
    """The weight has its rank after the step, and taps are as they were."""
    tx = optax.chain(
        dp_kfac(optax.sgd(0.1), **PLAIN), lrpet(at_rank("dense/kernel", 1), every=2)
    )
    ranks = []
    for steps in (1, 2):
        new, _ = run(tx, steps, given=True)
        ranks.append(np.linalg.matrix_rank(kernel(new), tol=1e-5))
        assert not new["dense"][TAPS].tap_a.any()
    assert ranks == [3, 1]
    # The other way round the step would leave the low rank again.
    plan = lrpet(at_rank("dense/kernel", 1), every=1)
    other, _ = run(optax.chain(plan, dp_kfac(optax.sgd(0.1), **PLAIN)))
    assert np.linalg.matrix_rank(kernel(other), tol=1e-5) == 3


def test_other_taps_are_for_the_inner_transformation():
    params = start()
    params["dense"]["tap_bound"] = tap_bound(1.0)
    tx = dp_kfac(adapt_bounds(optax.sgd(0.1, momentum=0.9), floor=0.5), **PLAIN)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, tx.init(params), params, step=0)
    assert updates["dense"]["tap_bound"][0] != 0
    assert not updates["dense"]["tap_bound"][1:].any()


def test_micro_batches_add_up():
    """Statistics of two halves, whose gradients are of a half of the mean each."""

    def half(params, rows):
        y = LAYER.apply({"params": params["dense"]}, X[rows]) * params["scale"][None]
        return jnp.square(y - Y[rows]).sum(-1).mean() / 2

    params = start()
    parts = [jax.grad(half)(params, rows) for rows in (slice(0, 4), slice(4, 8))]
    both = jax.tree.map(jnp.add, *parts)
    tx, made = dp_kfac(optax.sgd(0.1), **PLAIN), []
    for grads in (both, jax.grad(loss)(params)):
        updates, _ = tx.update(grads, tx.init(params), params)
        made.append(updates["dense"]["kernel"])
    np.testing.assert_allclose(*made, rtol=1e-4)


def test_the_clip_bounds_the_step():
    """With nu <= 1: <step, gradient> learning_rate^2 is kl_clip, or less."""
    options = {"damping": 0.01, "learning_rate": 0.5}
    grads, params, sizes = jax.grad(loss)(start()), start(), []
    for clip in (1e-4, 1e4):
        tx = dp_kfac(optax.identity(), kl_clip=clip, **options)
        updates, _ = tx.update(grads, tx.init(params), params)
        pairs = [(updates["dense"][k], grads["dense"][k]) for k in ("kernel", "bias")]
        sizes.append(float(sum(jnp.vdot(u, g) for u, g in pairs)) * 0.5**2)
        np.testing.assert_allclose(updates["scale"], grads["scale"])  # is no layer
    free = dp_kfac(optax.identity(), kl_clip=None, damping=0.01)
    updates, _ = free.update(grads, free.init(params), params)
    whole = sum(
        float(jnp.vdot(updates["dense"][k], grads["dense"][k]))
        for k in ("kernel", "bias")
    )
    # It scales with nu, the square root of what is too much.
    assert sizes[0] == pytest.approx((1e-4 * whole * 0.25) ** 0.5, rel=1e-4)
    assert sizes[1] == pytest.approx(whole * 0.25, rel=1e-4)


def test_a_rate_may_be_a_schedule():
    rate = optax.piecewise_constant_schedule(0.5, {1: 0.0})
    tx = dp_kfac(optax.identity(), kl_clip=1e-6, learning_rate=rate, damping=0.01)
    params, sizes = start(), []
    grads = jax.grad(loss)(params)
    for step in (0, 2):  # a rate of 0 moves nothing, and needs no bound
        updates, _ = tx.update(grads, tx.init(params), params, step=step)
        sizes.append(float(jnp.abs(updates["dense"]["kernel"]).max()))
    assert sizes[0] < sizes[1] and np.isfinite(sizes).all()


def test_marks_say_whether_the_next_step_collects():
    tx, marks = dp_kfac(optax.sgd(0.1), factor_every=3, inverse_every=6, **PLAIN), []
    for steps in range(1, 7):
        new, state = run(tx, steps, given=steps > 3)
        last = [leaf[-1, -1] for leaf in jax.tree.leaves(new["dense"][TAPS])]
        marks.append([float(mark) for mark in last])
        others = sum(
            jnp.abs(leaf).sum() for leaf in jax.tree.leaves(new["dense"][TAPS])
        )
        assert others == sum(last)
    assert marks == [[1.0] * 2, [1.0] * 2, [0.0] * 2] * 2
    assert int(state.count) == 6


@pytest.mark.parametrize("method", ["cholesky", "eigen"])
def test_g_a_batch_that_is_not_finite_is_counted_and_teaches_nothing(method):
    """Its gradient passes on, so that `apply_if_finite` may leave it out."""
    inner = optax.apply_if_finite(optax.sgd(0.1), max_consecutive_errors=5)
    tx = dp_kfac(inner, method=method, **PLAIN)
    params, state = run(tx)
    grads = jax.grad(loss)(params, X.at[0, 0].set(jnp.nan))
    updates, new = tx.update(grads, state, params)
    assert int(new.skipped) == 1 and int(new.inner.notfinite_count) == 1
    for a, b in zip(
        jax.tree.leaves(new.curvature), jax.tree.leaves(state.curvature), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert all(not leaf.any() for leaf in jax.tree.leaves(updates))
    updates, new = tx.update(jax.grad(loss)(params), new, params)
    assert int(new.skipped) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


def test_g_steps_without_an_inverse_are_plain_and_counted():
    tx = dp_kfac(optax.sgd(0.1), ema_old=0.9, **PLAIN)
    params = start()
    state, grads = tx.init(params), jax.grad(loss)(params)
    [name] = state.curvature
    broken = state.curvature[name]._replace(a=jnp.full((1, 5, 5), jnp.inf))
    state = state._replace(curvature={name: broken})
    updates, new = tx.update(grads, state, params)
    assert (int(new.failed), int(new.plain)) == (1, 1)
    np.testing.assert_allclose(
        updates["dense"]["kernel"], -0.1 * grads["dense"]["kernel"], rtol=1e-6
    )


def test_one_example_is_enough():
    def one(params):
        y = LAYER.apply({"params": params["dense"]}, X[:1])
        return jnp.square(y).sum()

    params, tx = start(), dp_kfac(optax.sgd(0.1), ema_old=0.0, **PLAIN)
    updates, state = tx.update(jax.grad(one)(params), tx.init(params), params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
    assert int(state.plain) == 0


def test_kernels_of_half_precision_keep_their_dtype():
    params = start()
    half = params["dense"]["kernel"].astype(jnp.bfloat16)
    params["dense"] = {**params["dense"], "kernel": half}
    tx = dp_kfac(optax.sgd(0.1), **PLAIN)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, state = tx.update(grads, tx.init(params), params)
    assert updates["dense"]["kernel"].dtype == jnp.bfloat16
    assert all(a.dtype != jnp.bfloat16 for a in jax.tree.leaves(state.curvature))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"damping": 0.0}, "damping=0.0: it must be above 0"),
        ({"ema_old": 1.0}, "ema_old=1.0: the weight of the old"),
        ({"ema_old": -0.1}, "ema_old=-0.1"),
        ({"factor_every": 4, "inverse_every": 2}, "factor_every=4, inverse_every=2"),
        ({"factor_every": 0}, "factor_every=0"),
        ({"kl_clip": 0.1}, "kl_clip=0.1, learning_rate=None"),
        ({"kl_clip": 0.0, "learning_rate": 1.0}, "kl_clip=0.0"),
        ({"method": "lu"}, "method='lu'"),
        ({"shards": 2}, "shards=2 are of a mesh"),
    ],
)
def test_g_wrong_options_are_named(wrong, says):
    with pytest.raises(ValueError, match=says):
        dp_kfac(optax.sgd(1), **{"kl_clip": None, **wrong})


def test_g_what_is_missing_is_named():
    params, tx = start(), dp_kfac(optax.sgd(1), kl_clip=None)
    with pytest.raises(ValueError, match="no layer of params has K-FAC's taps.*scale"):
        tx.init({"scale": params["scale"]})
    with pytest.raises(ValueError, match="dp_kfac needs params"):
        tx.update(params, tx.init(params))


def test_states_are_arrays_by_the_name_of_a_stack():
    state = dp_kfac(optax.sgd(1), kl_clip=None).init(start())
    assert set(state.curvature) == {"5x3"}
    assert all(isinstance(leaf, jax.Array) for leaf in flat(state).values())
