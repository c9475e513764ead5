import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.optim.clip import clip_by_global_norm, square_norm


@pytest.fixture
def gradient(key):
    one, two = jax.random.split(key)
    return {
        "edge": {"kernel": jax.random.normal(one, (3, 4))},
        "cloud": {"kernel": jax.random.normal(two, (4, 2)), "bias": jnp.ones(2)},
    }


def clipped(max_norm, updates, **extra):
    tx = clip_by_global_norm(max_norm)
    return tx.update(updates, tx.init(updates), **extra)[0]


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


@pytest.mark.parametrize("max_norm", [0.1, 2.0, 100.0])
def test_one_party_clips_as_optax_does(max_norm, gradient):
    tx = optax.clip_by_global_norm(max_norm)
    close(clipped(max_norm, gradient), tx.update(gradient, tx.init(gradient))[0])


@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_parties_that_know_the_whole_norm_clip_as_one(max_norm, gradient):
    tx = optax.clip_by_global_norm(max_norm)
    want, _ = tx.update(gradient, tx.init(gradient))
    total = square_norm(gradient["edge"]) + square_norm(gradient["cloud"])
    for party, own in gradient.items():
        close(clipped(max_norm, own, sq_norm=total), want[party])
    alone = {party: clipped(0.1, own) for party, own in gradient.items()}
    assert float(optax.tree.norm(alone)) > 0.1 * 1.1


def test_a_small_gradient_passes_to_the_bit(gradient):
    jax.tree.map(np.testing.assert_array_equal, clipped(1e3, gradient), gradient)
    zeros = jax.tree.map(jnp.zeros_like, gradient)
    jax.tree.map(np.testing.assert_array_equal, clipped(1.0, zeros), zeros)


def test_dtypes_are_kept_and_the_norm_is_float32():
    updates = {"w": jnp.full(4, 200, jnp.float16)}  # its square overflows float16
    made = clipped(1.0, updates)["w"]
    assert made.dtype == jnp.float16
    np.testing.assert_allclose(made, np.full(4, 0.5), rtol=1e-3)


def test_taps_are_neither_counted_nor_scaled():
    updates = {"w": jnp.array([3.0, 4.0]), "tap_square": jnp.array([100.0])}
    assert float(square_norm(updates)) == 25.0
    made = clipped(1.0, updates)
    np.testing.assert_allclose(made["w"], [0.6, 0.8], rtol=1e-6)
    assert made["tap_square"].tolist() == [100.0]


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_a_norm_that_nothing_passes_is_refused(max_norm):
    with pytest.raises(ValueError, match="max_norm must be above 0"):
        clip_by_global_norm(max_norm)
