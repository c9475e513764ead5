import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from splitjax.models.batch_norm import BatchNorm

MASK = jnp.array([True, True, True, False])


def begin(key, **options):
    x = 3 + 2 * jax.random.normal(key, (4, 3, 2, 5))
    layer = BatchNorm(**options)
    made = layer.init(key, x, MASK, train=False)
    running = {"mean": jnp.arange(5.0), "var": jnp.full(5, 2.0)}
    return layer, {"params": made["params"], "batch_stats": running}, x


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def run(layer, made, x, mask, train=True):
    y, new = layer.apply(made, x, mask, train=train, mutable="batch_stats")
    return y, new["batch_stats"]


@pytest.mark.parametrize("train", [False, True])
def test_it_is_flaxs_own_where_every_row_is_real(train, key):
    layer, made, x = begin(key, momentum=0.8, eps=1e-3)
    theirs = nn.BatchNorm(
        not train, momentum=0.8, epsilon=1e-3, use_fast_variance=False
    )
    want, new = theirs.apply(made, x, mutable="batch_stats")
    for mask in (None, jnp.ones(4, bool)):
        y, state = run(layer, made, x, mask, train)
        np.testing.assert_allclose(y, want, atol=2e-6)
        jax.tree.map(close, state, dict(new["batch_stats"]))


def test_padding_enters_neither_output_nor_state_nor_gradient(key):
    layer, made, x = begin(key)
    y, state = run(layer, made, x, MASK)
    want, wanted = run(layer, made, x[:3], None)
    np.testing.assert_allclose(y[:3], want, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, wanted
    )
    high, same = run(layer, made, x.at[3].set(1e6), MASK)
    np.testing.assert_array_equal(high[:3], y[:3])
    jax.tree.map(np.testing.assert_array_equal, same, state)

    def loss(x):
        return jnp.square(run(layer, made, x, MASK)[0][:3]).sum()

    assert not jax.grad(loss)(x)[3].any() and jax.grad(loss)(x)[:3].any()


def test_a_batch_of_padding_alone_changes_nothing(key):
    layer, made, x = begin(key)
    none = jnp.zeros(4, bool)
    y, state = run(layer, made, x, none)
    want, _ = run(layer, made, x, none, train=False)
    np.testing.assert_array_equal(y, want)
    jax.tree.map(np.testing.assert_array_equal, state, made["batch_stats"])
    gradient = jax.grad(lambda x: run(layer, made, x, none)[0].sum())(x)
    assert jnp.isfinite(gradient).all()


def test_low_precision_is_normed_in_float32(key):
    layer, made, x = begin(key, dtype=jnp.bfloat16)
    y, state = run(layer, made, x.astype(jnp.bfloat16), MASK)
    assert y.dtype == jnp.bfloat16 and state["mean"].dtype == jnp.float32
