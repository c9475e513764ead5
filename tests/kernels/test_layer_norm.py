"""Layer norm: against Flax, at a large mean, and what it keeps for its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads

from splitjax.kernels import layer_norm
from tests.kernels.ways import (
    IMPLS,
    SHAPES,
    assert_close,
    normal,
    stored_bytes,
    value_and_pull,
)


def _flax(x, scale, bias):
    module = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)
    with jax.numpy_dtype_promotion("standard"):
        return module.apply({"params": {"scale": scale, "bias": bias}}, x)


def _args(shape, dtype=jnp.float32):
    x = 3 * normal(shape, 0, jnp.float32) + 2
    return x.astype(dtype), normal(shape[-1:], 1), normal(shape[-1:], 2)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients_are_flaxs(shape, impl):
    args = _args(shape)
    got = value_and_pull(lambda *a: layer_norm(*a, impl=impl), *args)
    want = value_and_pull(_flax, *args)
    if shape[-1] == 1:  # all is bias: x - mean is zero, times 1000
        want = (want[0], (jnp.zeros(shape), jnp.zeros(1), want[1][2]))
    assert_close(got, want)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype, impl):
    """Sums are float32: in float16 the square of 300 is infinite already."""
    x, scale, bias = _args((7, 33), dtype)
    x = x * jnp.asarray(300, dtype)
    got = value_and_pull(lambda *a: layer_norm(*a, impl=impl), x, scale, bias)
    want = value_and_pull(_flax, x.astype(jnp.float32), scale, bias)
    assert got[0].dtype == dtype and got[1][0].dtype == dtype
    assert got[1][1].dtype == jnp.float32
    wide = jnp.float32
    assert_close(got[0], want[0], jnp.bfloat16)
    cotangent = normal(x.shape, 9, dtype).astype(wide)
    grads = jax.vjp(_flax, x.astype(wide), scale, bias)[1](cotangent)
    assert_close(got[1], grads, jnp.bfloat16)
    cast = layer_norm(x, scale, bias, dtype=jnp.float32, impl=impl)
    assert cast.dtype == jnp.float32
    assert_close(cast, want[0])


@pytest.mark.parametrize("impl", IMPLS)
def test_first_order(impl):
    x, scale, bias = _args((3, 5))
    check_grads(
        lambda *a: layer_norm(*a, impl=impl),
        (x, scale, bias),
        order=1,
        modes=["rev"],
        rtol=2e-2,
        atol=2e-2,  # of differences in float32
    )


def _error(y, x):
    x = np.asarray(x, np.float64)
    want = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    return np.abs(np.asarray(y, np.float64) - want).max()


@pytest.mark.parametrize("impl", IMPLS)
def test_a_mean_far_from_zero(impl):
    """The reason for two passes: in one, LightSeq's, the variance cancels."""
    x = 1e4 + normal((64, 768))
    ones, zeros = jnp.ones(768), jnp.zeros(768)
    y = layer_norm(x, ones, zeros, eps=1e-8, impl=impl)
    assert _error(y, x) < 5e-3
    mean = x.mean(-1, keepdims=True)
    variance = jnp.maximum((x * x).mean(-1, keepdims=True) - mean * mean, 0)
    assert _error((x - mean) * jax.lax.rsqrt(variance + 1e-8), x) > 1e3


def test_what_is_kept():
    """x, and a mean and a factor for each row; by autodiff two more of x's size."""
    args = _args((7, 33))
    ours = stored_bytes(lambda *a: layer_norm(*a, impl="xla"), *args, params=(1, 2))
    assert ours == 4 * (7 * 33 + 7 + 7)

    def plain(x, scale, bias):
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
        return x * scale[None] + bias[None]

    assert stored_bytes(plain, *args, params=(1, 2)) >= 4 * (2 * 7 * 33 + 7)


def test_an_axis_out_of_order():
    x, scale, bias = _args((4, 6))
    turned = jax.jit(lambda x: layer_norm(x.T, scale[:4], bias[:4], impl="pallas"))(x)
    assert_close(turned, _flax(x.T, scale[:4], bias[:4]))


def test_bad_inputs():
    one = jnp.ones(4)
    with pytest.raises(ValueError, match="floats: x is int32"):
        layer_norm(jnp.ones((2, 4), jnp.int32), one, one)
    with pytest.raises(ValueError, match=r"its last axis alone: \(3,\) and \(4,\)"):
        layer_norm(jnp.ones((2, 4)), jnp.ones(3), one)
    with pytest.raises(ValueError, match="last axis alone"):
        layer_norm(jnp.float32(1), one, one)
