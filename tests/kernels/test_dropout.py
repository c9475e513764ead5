"""Dropout without a mask: the same places forward and backward, the mean kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from splitjax.kernels import bias_act_dropout, bias_dropout_skip
from splitjax.kernels.dropout import ACTIVATIONS
from tests.kernels.ways import (
    IMPLS,
    SHAPES,
    assert_close,
    normal,
    stored_bytes,
    value_and_pull,
)

PLAIN = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def _lead(bias, x):
    return jnp.expand_dims(bias, tuple(range(x.ndim - 1)))


def _skip_kept(key, shape, rate):
    """What is kept, read from the values themselves: 1 / (1 - rate) or 0."""
    return bias_dropout_skip(
        jnp.ones(shape), jnp.zeros(shape[-1]), jnp.zeros(shape), key, rate=rate
    )


def _act_kept(key, shape, rate):
    ones, zeros = jnp.ones(shape), jnp.zeros(shape[-1])
    return bias_act_dropout(ones, zeros, key, rate=rate, activation="relu")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bias_dropout_skip(shape, impl, key):
    """The reference multiplies by the very mask, so one that moves would show."""
    x, bias, skip = normal(shape), normal(shape[-1:], 1), normal(shape, 2)
    for rate in (0.0, 0.3):
        kept = _skip_kept(key, shape, rate)

        def plain(x, bias, skip, kept=kept):
            return skip + (x + _lead(bias, x)) * kept

        def ours(x, bias, skip, rate=rate):
            return bias_dropout_skip(x, bias, skip, key, rate=rate, impl=impl)

        got = value_and_pull(ours, x, bias, skip)
        assert_close(got, value_and_pull(plain, x, bias, skip))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("activation", [*ACTIVATIONS])
def test_bias_act_dropout(activation, impl, key):
    for shape in SHAPES[:3]:
        x, bias = normal(shape), normal(shape[-1:], 1)
        kept = _act_kept(key, shape, 0.3)

        def plain(x, bias, kept=kept):
            return PLAIN[activation](x + _lead(bias, x)) * kept

        def ours(x, bias):
            more = {"rate": 0.3, "activation": activation, "impl": impl}
            return bias_act_dropout(x, bias, key, **more)

        got = value_and_pull(ours, x, bias)
        assert_close(got, value_and_pull(plain, x, bias))


@pytest.mark.parametrize("impl", IMPLS)
def test_half_precision(impl, key):
    x, bias, skip = normal((7, 33)), normal((33,), 1), normal((7, 33), 2)
    low = [a.astype(jnp.bfloat16) for a in (x, skip)]

    def chain(x, skip):
        y = bias_act_dropout(x, bias, key, rate=0.3, impl=impl)
        return bias_dropout_skip(y, bias, skip, key, rate=0.3, impl=impl)

    got = value_and_pull(chain, *low)
    assert got[0].dtype == jnp.bfloat16 and got[1][0].dtype == jnp.bfloat16
    want = value_and_pull(chain, *[a.astype(jnp.float32) for a in low])
    # The cotangent is rounded, too: two roundings of 2^-9 at the size of the values.
    assert_close(got, want, jnp.bfloat16)


@pytest.mark.parametrize("impl", IMPLS)
def test_first_order(impl, key):
    x, bias, skip = normal((3, 5)), normal((5,), 1), normal((3, 5), 2)
    how = {"order": 1, "modes": ["rev"], "rtol": 2e-2, "atol": 2e-2}

    def first(x, bias, skip):
        return bias_dropout_skip(x, bias, skip, key, rate=0.3, impl=impl)

    def second(x, bias):
        return bias_act_dropout(x, bias, key, rate=0.3, impl=impl)

    check_grads(first, (x, bias, skip), **how)
    check_grads(second, (x, bias), **how)


def test_the_share_and_the_mean(key):
    kept = _skip_kept(key, (400, 250), 0.25)
    # Four deviations of the mean of 1e5 coins.
    assert abs(float((kept == 0).mean()) - 0.25) < 4 * (0.25 * 0.75 / 1e5) ** 0.5
    assert abs(float(kept.mean()) - 1) < 4 * (0.25 / 0.75 / 1e5) ** 0.5
    both = (kept[:-1] == 0) & (kept[1:] == 0)
    assert abs(float(both.mean()) - 0.0625) < 0.005
    assert np.unique(np.asarray(kept)).tolist() == pytest.approx([0, 4 / 3])


def test_which_places(key):
    """One key, one pattern; another key, another; each function has its own."""
    first = _skip_kept(key, (64, 64), 0.5)
    assert bool((first == _skip_kept(key, (64, 64), 0.5)).all())
    other = _skip_kept(jax.random.fold_in(key, 1), (64, 64), 0.5)
    for kept in (other, _act_kept(key, (64, 64), 0.5)):
        assert 0.4 < float((first == kept).mean()) < 0.6
    three = _skip_kept(key, (4, 16, 64), 0.5)
    assert bool((three.reshape(64, 64) == first).all())


@pytest.mark.parametrize("impl", IMPLS)
def test_rates_of_none_and_all(impl, key):
    x, bias, skip = normal((2, 9)), normal((9,), 1), normal((2, 9), 2)

    def first(x, bias, skip):
        return bias_dropout_skip(x, bias, skip, key, rate=1, impl=impl)

    y, grads = value_and_pull(first, x, bias, skip)
    assert bool((y == skip).all()) and not grads[0].any() and not grads[1].any()
    assert not bias_act_dropout(x, bias, rate=1, impl=impl).any()
    none = bias_dropout_skip(x, bias, skip, impl=impl)
    assert_close(none, x + bias[None] + skip)


@pytest.mark.parametrize("impl", IMPLS)
def test_an_empty_batch(impl, key):
    """No rows: no values, and a bias whose gradient is zero."""
    x, bias, how = jnp.ones((0, 4)), jnp.ones(4), {"rate": 0.5, "impl": impl}
    for ours in (
        lambda x, bias: bias_dropout_skip(x, bias, x, key, **how),
        lambda x, bias: bias_act_dropout(x, bias, key, **how),
    ):
        y, (slope, grad) = value_and_pull(ours, x, bias)
        assert y.shape == slope.shape == (0, 4) and not grad.any()


def test_what_is_kept(key):
    """Eight bytes of key; autodiff of Flax's layer keeps a byte for each value."""
    x, bias, skip = normal((7, 33)), normal((33,), 1), normal((7, 33), 2)

    def first(x, bias, skip):
        return bias_dropout_skip(x, bias, skip, key, rate=0.3)

    def second(x, bias):
        return bias_act_dropout(x, bias, key, rate=0.3)

    assert stored_bytes(first, x, bias, skip, params=(1,)) == 8
    assert stored_bytes(second, x, bias, params=(1,)) == 8 + 4 * 7 * 33

    def plain(x, bias, skip):
        kept = jax.random.bernoulli(key, 0.7, x.shape)
        return skip + jnp.where(kept, (x + bias[None]) / 0.7, 0.0)

    def plain_act(x, bias):
        kept = jax.random.bernoulli(key, 0.7, x.shape)
        return jnp.where(kept, jax.nn.gelu(x + bias[None]) / 0.7, 0.0)

    assert stored_bytes(plain, x, bias, skip, params=(1,)) >= 7 * 33
    assert stored_bytes(plain_act, x, bias, params=(1,)) >= (1 + 4) * 7 * 33


def test_bad_inputs(key):
    x, bias = jnp.ones((2, 4)), jnp.ones(4)
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="a probability, from 0 to 1"):
            bias_dropout_skip(x, bias, x, key, rate=rate)
    with pytest.raises(ValueError, match="needs a key"):
        bias_act_dropout(x, bias, rate=0.1)
    with pytest.raises(ValueError, match="floats: x is int32"):
        bias_act_dropout(x.astype(jnp.int32), bias)
    with pytest.raises(ValueError, match="a bias of its last axis alone: "):
        bias_act_dropout(x, jnp.ones(3))
    with pytest.raises(ValueError, match="skip is floats"):
        bias_dropout_skip(x, bias, jnp.ones((4,)), key)
    with pytest.raises(ValueError, match="activation='gellu'.*gelu"):
        bias_act_dropout(x, bias, activation="gellu")
