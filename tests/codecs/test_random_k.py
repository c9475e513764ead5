import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import Context, nonfinite, random_k, wire_bytes

X = jax.random.normal(jax.random.key(0), (2, 11))
KEYS = jax.random.split(jax.random.key(1), 4000)


def decoded(codec, x=X):
    def run(key):
        message, state = codec.encode(x, codec.init(x), Context(key))
        return codec.decode(message, state)[0]

    return np.asarray(jax.jit(jax.vmap(run))(KEYS), np.float64)


@pytest.mark.parametrize("axis", ["token", "all"])
def test_its_mean_over_keys_is_x(axis):
    """Also where the strata are of unequal length: 4 places in 11, or in 22."""
    y = decoded(random_k(4, axis=axis, unbiased=True))
    error = y.mean(0) - X
    assert (np.abs(error) < 5 * y.std(0) / np.sqrt(len(KEYS))).all()
    assert (np.abs(error) < 0.15 * np.abs(X) + 1e-3).all()


def test_it_sends_k_places_each_as_likely():
    y = decoded(random_k(0.25))
    sent = y != 0
    assert (sent.sum(-1) == 3).all()
    np.testing.assert_array_equal(y, np.where(sent, X, 0))
    length = np.array([3] * 3 + [4] * 8)  # 11 places as 3 strata
    np.testing.assert_allclose(sent.mean(0), np.tile(1 / length, (2, 1)), atol=0.04)
    assert len(np.unique(sent.reshape(len(KEYS), -1), axis=0)) > 1000


def test_places_cost_a_seed():
    spec = jax.ShapeDtypeStruct((4096, 768), jnp.float32)
    assert wire_bytes(random_k(0.1, axis="all"), spec) == 4 * 314573 + 8
    assert wire_bytes(random_k(768), spec) == 4096 * 768 * 4


def test_scaling_up_saturates():
    x = jnp.array([60000.0, -60000.0, 60000.0], jnp.float16)
    y = decoded(random_k(1, unbiased=True), x)
    np.testing.assert_array_equal(np.unique(y), [-65504, 0, 65504])


def test_only_what_crosses_is_counted():
    x = jnp.full((1, 8), jnp.nan)
    codec = random_k(3)
    _, state = codec.encode(x, codec.init(x), Context(KEYS[0]))
    assert int(nonfinite(state)) == 3


def test_it_needs_a_key():
    codec = random_k(3)
    with pytest.raises(ValueError, match="needs a key"):
        codec.encode(X, codec.init(X), Context())
    whole = random_k(11)  # nothing is drawn here
    np.testing.assert_array_equal(
        whole.decode(*whole.encode(X, whole.init(X), Context()))[0], X
    )


def test_no_part_is_refused():
    with pytest.raises(ValueError, match="random_k"):
        random_k(0.0)
