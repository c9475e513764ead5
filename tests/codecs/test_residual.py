"""Layers that keep a compressed input: gradients, what is refused, what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from splitjax.codecs import (
    Context,
    cast,
    chain,
    compress_residuals,
    fixed_width,
    quantize,
    residual_bytes,
)
from splitjax.core.tap import BOUND, Noise, bound_of, tap_bound

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (16, 24))
PARAMS = {"kernel": jax.random.normal(jax.random.key(1), (24, 8)), "bias": jnp.ones(8)}


def dense(params, x):
    return x @ params["kernel"] + params["bias"][None]


def grads(layer, params=PARAMS, x=X):
    def loss(params, x):
        y = layer(params, x)
        return jnp.sum(jnp.sin(y)), y

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, y), (dw, dx) = run(params, x)
    return y, dw, dx


CODECS = [fixed_width(0.05, 8), cast("bf16")]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_only_the_kernel_s_gradient_is_of_the_decoded_input(codec):
    y, dw, dx = grads(dense)
    z, lossy, exact = grads(compress_residuals(dense, codec))
    np.testing.assert_array_equal(y, z)
    np.testing.assert_array_equal(dx, exact)
    np.testing.assert_array_equal(dw["bias"], lossy["bias"])
    error = np.abs(dw["kernel"] - lossy["kernel"])
    assert 0 < error.max() < 1
    message, _ = codec.encode(X, codec.init(X), Context())
    decoded, _ = codec.decode(message, codec.init(X))
    np.testing.assert_allclose(
        lossy["kernel"], decoded.T @ jnp.cos(y), rtol=1e-5, atol=1e-5
    )


def test_nothing_is_lost_without_a_codec():
    y, dw, dx = grads(compress_residuals(dense, chain()))
    _, want, _ = grads(dense)
    np.testing.assert_allclose(dw["kernel"], want["kernel"], rtol=1e-6, atol=1e-6)


def test_a_bound_beside_the_parameters_gives_statistics():
    layer = compress_residuals(dense, lambda eb: fixed_width(eb, 8))
    x = jnp.maximum(X, 0)
    params = {**PARAMS, BOUND: tap_bound(0.05)}
    y, dw, dx = grads(layer, params, x)
    want = grads(
        compress_residuals(dense, fixed_width(float(bound_of(params[BOUND])), 8)), x=x
    )
    np.testing.assert_array_equal(dw["kernel"], want[1]["kernel"])
    np.testing.assert_array_equal(dx, want[2])
    noise, g = Noise(*dw[BOUND]), np.cos(y)
    share = np.mean(np.asarray(x) != 0)
    assert float(noise.log2) == 0 and float(noise.missed) == 0
    np.testing.assert_allclose(noise.squares, share * np.sum(g**2) / 8, rtol=1e-5)
    np.testing.assert_allclose(noise.gradient, np.abs(g).sum(), rtol=1e-5)
    assert [float(a) for a in noise[3:7]] == [16 * 8, 16, share * x.size, x.size]


def test_a_width_that_does_not_reach_is_reported():
    layer = compress_residuals(dense, lambda eb: fixed_width(eb, 2))
    _, dw, _ = grads(layer, {**PARAMS, BOUND: tap_bound(0.01)})
    assert Noise(*dw[BOUND]).missed > X.size / 2


def test_linen_layers_and_narrow_dtypes():
    conv = nn.Conv(4, (3, 3), dtype=jnp.bfloat16)
    x = jax.random.normal(KEY, (2, 6, 6, 3), jnp.bfloat16)
    params = conv.init(KEY, x)["params"]

    def layer(params, x):
        return conv.apply({"params": params}, x)

    y, dw, dx = grads(layer, params, x)
    z, lossy, exact = grads(compress_residuals(layer, cast("f8_e4m3")), params, x)
    np.testing.assert_array_equal(y, z)
    np.testing.assert_array_equal(dx, exact)
    assert jax.tree.map(lambda a: a.dtype, dw) == jax.tree.map(lambda a: a.dtype, lossy)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_of_one_or_none(rows):
    layer = compress_residuals(dense, lambda eb: cast("bf16"))
    params = {**PARAMS, BOUND: tap_bound(0.5)}
    _, dw, dx = grads(layer, params, X[:rows])
    assert dx.shape == (rows, 24) and np.isfinite(dw["kernel"]).all()
    assert np.isfinite(dw[BOUND]).all()


@pytest.mark.parametrize("inputs, outputs", [(24, 0), (0, 8)])
def test_a_layer_of_size_zero(inputs, outputs):
    layer = compress_residuals(dense, lambda eb: fixed_width(eb, 4))
    params = {"kernel": jnp.ones((inputs, outputs)), "bias": jnp.ones(outputs)}
    x = X[:, :inputs]
    y, dw, dx = grads(layer, {**params, BOUND: tap_bound(0.5)}, x)
    assert y.shape == (16, outputs) and not np.asarray(dx).any()
    assert dw["kernel"].shape == (inputs, outputs) and np.isfinite(dw[BOUND]).all()


def test_a_gradient_of_zeros_gives_zeros():
    layer = compress_residuals(dense, cast("bf16"))
    dw = jax.grad(lambda p: 0 * layer(p, X).sum())(PARAMS)
    assert not any(np.asarray(a).any() for a in jax.tree.leaves(dw))


@pytest.mark.parametrize(
    "layer",
    [
        lambda p, x: jax.nn.relu(dense(p, x)),
        lambda p, x: dense(p, x * x),
        lambda p, x: jax.nn.gelu(x) @ p["kernel"],
    ],
    ids=["relu", "square", "gelu"],
)
def test_a_layer_that_is_not_linear_is_refused(layer):
    with pytest.raises(ValueError, match="linear in its input"):
        grads(compress_residuals(layer, quantize(8)))


def test_parameters_may_enter_as_they_like():
    def standardized(params, x):
        kernel = params["kernel"]
        kernel = (kernel - kernel.mean(0, keepdims=True)) / jnp.exp(kernel.std())
        return x @ kernel

    _, _, dx = grads(standardized)
    _, _, exact = grads(compress_residuals(standardized, cast("bf16")))
    np.testing.assert_allclose(dx, exact, rtol=1e-3, atol=1e-6)


def test_a_function_of_a_bound_needs_one():
    layer = compress_residuals(dense, lambda eb: fixed_width(eb, 4))
    with pytest.raises(ValueError, match="tap_bound"):
        grads(layer)
    with pytest.raises(ValueError, match="2\\^-99"):
        tap_bound(0.0)


def test_what_is_kept_is_the_message():
    plain = residual_bytes(dense, PARAMS, X)
    small = residual_bytes(compress_residuals(dense, fixed_width(0.1, 4)), PARAMS, X)
    assert plain == X.nbytes
    assert small < X.nbytes / 5
