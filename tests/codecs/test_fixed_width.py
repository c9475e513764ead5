"""What is special to `fixed_width`: its reach, and what it says when that ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import Context, fixed_width, nonfinite, wire_bytes
from splitjax.core.tree import spec_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 32)).astype(np.float32)
CODEC = fixed_width(0.25, 4)  # 16 numbers of half a unit


@functools.cache
def crossing(codec):
    def run(x):
        message, state = codec.encode(x, codec.init(spec_of(x)), Context())
        return codec.decode(message, codec.init(spec_of(x)))[0], message.node, state

    return jax.jit(run)


def off(x, y):
    return np.abs(np.float64(x) - np.float64(np.asarray(y))).max()


CASES = {
    "signed": X,
    "not negative": 2 * np.maximum(X, 0),
    "not positive": -2 * np.maximum(X, 0),
    "far from zero": 100 + X,
    "sparse": np.where(RNG.random(X.shape) < 0.9, 0, X),
    "a few out of reach": np.where(RNG.random(X.shape) < 0.01, 50, X),
    "constant": np.full_like(X, 3.7),
    "denormal": X * 1e-40,
}


@pytest.mark.parametrize("name", CASES)
def test_the_bound_holds_where_nothing_is_missed(name):
    x = CASES[name].astype(np.float32)
    y, _, state = crossing(CODEC)(x)
    assert int(state["missed"]) == 0
    assert off(x, y) <= 0.25
    assert not np.asarray(y)[x == 0].any()


def test_it_says_how_many_it_missed():
    """A range of 40 on 15 steps: the error is a step of that, and zeros stay zeros."""
    x = np.where(RNG.random(X.shape) < 0.2, 0, 20 * np.tanh(X)).astype(np.float32)
    y, node, state = crossing(CODEC)(x)
    missed = np.abs(x - np.asarray(y)) > 0.25
    assert int(state["missed"]) == missed.sum() > 0
    assert off(x, y) <= 20 / 14 * 1.01 and not np.asarray(y)[x == 0].any()
    assert int(node.outliers.places.used) == 0


def test_what_is_not_finite_is_kept_or_counted():
    x = X.copy()
    x[0, :3] = np.nan, np.inf, -np.inf
    y, _, state = crossing(CODEC)(x)
    np.testing.assert_array_equal(np.asarray(y)[0, :3], x[0, :3])
    assert int(nonfinite(state)) == 3 and int(state["missed"]) == 0
    x[:40, 0] = np.nan  # 42 are more than 32
    y, _, state = crossing(CODEC)(x)
    assert np.isfinite(np.asarray(y)).all()
    assert int(nonfinite(state)) == 42 and int(state["missed"]) >= 42


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats(dtype):
    x = jnp.asarray(X, dtype)
    y, _, state = crossing(CODEC)(x)
    assert y.dtype == dtype and int(state["missed"]) == 0
    assert off(x.astype(jnp.float32), y.astype(jnp.float32)) <= 0.25


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,)], ids=str)
def test_small_and_empty_arrays(shape):
    x = jnp.full(shape, 0.7)
    y, _, _ = crossing(CODEC)(x)
    assert y.shape == shape and (np.abs(x - y) <= 0.25).all()


def test_a_traced_bound_that_is_none_is_missed():
    run = jax.jit(lambda x, eb: fixed_width(eb, 4).encode(x, CODEC.init(x), Context()))
    for eb in (0.0, -1.0, np.nan):
        assert int(run(X, jnp.float32(eb))[1]["missed"]) > X.size / 2


def test_bytes_do_not_depend_on_values():
    assert wire_bytes(CODEC, X) == X.size // 2 + 8 * X.size // 64 + 8


@pytest.mark.parametrize(
    "wrong, text",
    [
        (dict(eb=0.0, bits=4), "eb=0.0"),
        (dict(eb=float("nan"), bits=4), "eb=nan"),
        (dict(eb=1.0, bits=1), "bits=1"),
        (dict(eb=1.0, bits=9), "bits=9"),
        (dict(eb=1.0, bits=4, outliers=-1), "outliers=-1"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(wrong, text):
    with pytest.raises(ValueError, match=text):
        fixed_width(**wrong)
