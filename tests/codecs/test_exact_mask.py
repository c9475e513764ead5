"""A relu and a pool with masks of bits have the gradients of those without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from splitjax.codecs import max_pool, relu, residual_bytes

X = jax.random.normal(jax.random.key(0), (2, 6, 6, 5))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_relu_is_a_relu(dtype):
    x = X.astype(dtype).at[0, 0, 0].set(0)
    for g in (X.astype(dtype), 0 * x):
        want, pull = jax.vjp(jax.nn.relu, x)
        found, mine = jax.vjp(relu, x)
        np.testing.assert_array_equal(want, found)
        np.testing.assert_array_equal(pull(g)[0], mine(g)[0])
    assert residual_bytes(lambda p, x: relu(x), (), x) == -(-x.size // 8)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_pool_is_a_pool(size):
    want, pull = jax.vjp(lambda x: nn.max_pool(x, (size,) * 2, (size,) * 2), X)
    found, mine = jax.vjp(lambda x: max_pool(x, size), X)
    np.testing.assert_array_equal(want, found)
    g = jax.random.normal(jax.random.key(1), want.shape)
    np.testing.assert_array_equal(pull(g)[0], mine(g)[0])
    bits = max(1, int(np.ceil(np.log2(size * size))))
    kept = residual_bytes(lambda p, x: max_pool(x, size), (), X)
    assert kept == -(-want.size * bits // 8)


def test_of_equals_the_first_takes_all():
    g = jax.grad(lambda x: max_pool(x).sum())(jnp.ones((1, 2, 2, 1)))
    assert g.reshape(-1).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("shape, size", [((1, 3, 2, 1), 2), ((2, 2), 2), (X.shape, 0)])
def test_other_shapes_are_refused(shape, size):
    with pytest.raises(ValueError, match=f"size={size}"):
        max_pool(jnp.ones(shape), size)
