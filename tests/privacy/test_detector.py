import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.optim.clip import clip_by_global_norm
from splitjax.privacy import gradient_gap, scrutinizer

LABELS = jnp.arange(32) % 4


def honest(seed):
    """What a softmax head sends: (p - y) through its kernel, and some noise."""
    rng = np.random.default_rng(seed)
    g = (0.25 - np.eye(4)[LABELS]) @ np.random.default_rng(0).normal(size=(4, 20))
    return jnp.asarray(g + rng.normal(size=(32, 20)), jnp.float32)


def hijack(seed):
    """One direction for all, and what differs has nothing to do with the label."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=20) + rng.normal(size=(32, 20)), jnp.float32)


def watch(kind, batches=12, **options):
    detector = scrutinizer(window=10, **options)
    state, update, verdict = detector.init(), jax.jit(detector.update), {}
    for seed in range(batches):
        state, verdict = update(state, kind(seed), LABELS)
    return verdict


gap_of = jax.jit(gradient_gap)


def test_the_gap_by_hand():
    g = jnp.array([[3.0, 0.0], [1.0, 1.0], [0.0, -2.0]])
    gap, known = gap_of(g, jnp.array([0, 0, 1]))
    alike, unlike = np.sqrt(0.5), (0 - np.sqrt(0.5)) / 2
    np.testing.assert_allclose(gap, alike - unlike, rtol=1e-6)
    assert known
    assert not gap_of(g, jnp.array([0, 0, 0]))[1]
    assert not gap_of(g, jnp.array([0, 1, 2]))[1]


def test_tiny_gradients_have_a_direction():
    g = honest(0)
    np.testing.assert_allclose(
        gap_of(1e-30 * g, LABELS)[0], gap_of(g, LABELS)[0], rtol=1e-5
    )


def test_honest_gradients_pass_and_others_are_flagged():
    assert not watch(honest)["hijacked"] and watch(honest)["gap"] > 0.3
    assert watch(hijack)["hijacked"] and abs(float(watch(hijack)["gap"])) < 0.1
    assert watch(lambda seed: 0 * honest(seed))["hijacked"]


def test_there_is_no_verdict_too_early():
    assert not watch(hijack, batches=3)["hijacked"]


def test_batches_of_one_label_tell_nothing():
    detector = scrutinizer(window=4)
    update = jax.jit(detector.update)
    state = detector.init()
    for seed in range(6):
        state, verdict = update(state, hijack(seed), 0 * LABELS)
    assert int(state["batches"]) == 0 and not verdict["hijacked"]


def test_a_gradient_that_blows_up_is_told_and_clipped():
    detector = scrutinizer(window=10)
    update = jax.jit(detector.update)
    state, _ = update(detector.init(), honest(0), LABELS)
    state, verdict = update(state, 1e6 * honest(1), LABELS)
    assert verdict["blown_up"]
    state, verdict = update(state, honest(2), LABELS)
    assert not verdict["blown_up"]  # the one before did not move the mean
    tx = clip_by_global_norm(1.0)
    clipped, _ = tx.update({"k": 1e6 * honest(1)}, tx.init({"k": honest(1)}))
    assert float(jnp.linalg.norm(clipped["k"])) < 1.001


def test_rows_that_are_not_finite_are_counted_and_left_out():
    bad = honest(0).at[3, 2].set(jnp.nan).at[5, 0].set(jnp.inf)
    detector = scrutinizer()
    update = jax.jit(detector.update)
    state, verdict = update(detector.init(), bad, LABELS)
    assert int(verdict["nonfinite"]) == 2
    assert np.isfinite(verdict["gap"]) and verdict["gap"] > 0.3


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="2 batches or more"):
        scrutinizer(window=1)
    with pytest.raises(ValueError, match="more than 1"):
        scrutinizer(largest_growth=1.0)
