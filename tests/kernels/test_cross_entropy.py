"""Cross entropy with label smoothing: against optax, padding, and bad labels."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.test_util import check_grads

from splitjax.kernels import cross_entropy, token_mean
from tests.kernels.ways import (
    IMPLS,
    assert_close,
    normal,
    stored_bytes,
    value_and_pull,
)

SHAPES = [(7, 33), (1, 48), (3, 1, 16)]


def _labels(shape):
    count = jnp.arange(jnp.zeros(shape[:-1]).size, dtype=jnp.int32)
    return (5 * count + 2).reshape(shape[:-1]) % shape[-1]


def _optax(logits, labels, smoothing):
    """optax spreads its alpha over all V classes, this one over the V - 1 others."""
    classes = logits.shape[-1]
    hot = jax.nn.one_hot(labels, classes)
    alpha = smoothing * classes / (classes - 1)
    smooth = optax.smooth_labels(hot, alpha) if smoothing else hot
    return optax.softmax_cross_entropy(logits, smooth)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_are_optaxs(shape, impl):
    logits, labels = 3 * normal(shape), _labels(shape)
    for smoothing in (0.0, 0.1):
        ours = functools.partial(
            cross_entropy, labels=labels, smoothing=smoothing, impl=impl
        )
        plain = functools.partial(_optax, labels=labels, smoothing=smoothing)
        got, want = value_and_pull(ours, logits), value_and_pull(plain, logits)
        assert_close(got, want)


@pytest.mark.parametrize("impl", IMPLS)
def test_half_precision(impl):
    logits, labels = normal((7, 33), 0, jnp.bfloat16), _labels((7, 33))
    ours = functools.partial(cross_entropy, labels=labels, smoothing=0.1, impl=impl)
    loss, (grad,) = value_and_pull(ours, logits)
    assert loss.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
    plain = functools.partial(_optax, labels=labels, smoothing=0.1)
    want, (slope,) = value_and_pull(plain, logits.astype(jnp.float32))
    assert_close(loss, want)  # the sums are float32
    assert_close(grad, slope, jnp.bfloat16)


@pytest.mark.parametrize("impl", IMPLS)
def test_first_order(impl):
    logits, labels = normal((3, 5)), _labels((3, 5))
    ours = functools.partial(cross_entropy, labels=labels, smoothing=0.2, impl=impl)
    check_grads(ours, (logits,), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("impl", IMPLS)
def test_padding(impl):
    """No loss and no gradient, even where its logits are no numbers."""
    logits = normal((4, 9)).at[1].set(jnp.nan).at[3, 0].set(jnp.inf)
    labels = jnp.array([2, -7, 8, -7], jnp.int32)
    ours = functools.partial(
        cross_entropy, labels=labels, smoothing=0.1, pad=-7, impl=impl
    )
    loss, (grad,) = value_and_pull(ours, logits)
    assert (loss[1], loss[3]) == (0, 0) and not grad[1].any() and not grad[3].any()
    rows = jnp.array([0, 2])
    assert_close(loss[rows], _optax(logits[rows], labels[rows], 0.1))
    # Classes share what is taken from the right one: the gradient sums to zero.
    assert bool((jnp.abs(grad.sum(-1)) < 1e-6).all()) and bool(grad[0].all())


def test_unsigned_labels_are_no_padding_of_minus_one():
    """255 is the uint8 of -1; here it is a class, or else no class."""
    labels = jnp.array([255, 3], jnp.uint8)
    losses = cross_entropy(normal((2, 256)), labels, pad=-1)
    assert bool((losses > 0).all())
    assert float(token_mean(losses, labels, pad=-1)) == pytest.approx(losses.mean())
    assert jnp.isnan(cross_entropy(normal((2, 9)), labels, pad=-1)[0])


def test_the_mean_of_no_tokens():
    pads = jnp.full((3,), 1)

    def mean(logits):
        return token_mean(cross_entropy(logits, pads, pad=1), pads, pad=1)

    value, grad = jax.value_and_grad(mean)(normal((3, 4)))
    assert float(value) == 0 and not grad.any()
    labels = jnp.array([1, 0, 1])
    losses = cross_entropy(normal((3, 4)), labels, pad=1)
    assert float(token_mean(losses, labels, pad=1)) == float(losses[1])
    assert_close(token_mean(losses, labels), losses.mean())


@pytest.mark.parametrize("impl", IMPLS)
def test_a_label_that_is_no_class(impl):
    """It cannot be raised from a compiled program; it does not pass for a number."""
    labels = jnp.array([0, 4, -1], jnp.int8)
    ours = functools.partial(cross_entropy, labels=labels, impl=impl)
    loss, (grad,) = value_and_pull(ours, normal((3, 4)))
    assert jnp.isnan(loss).tolist() == [False, True, True]
    assert jnp.isnan(grad).any(-1).tolist() == [False, True, True]


@pytest.mark.parametrize("impl", IMPLS)
def test_large_and_missing_logits(impl):
    logits = jnp.array([[1e4, -1e4, 0.0], [-jnp.inf, 1.0, 1.0]])
    ours = functools.partial(cross_entropy, labels=jnp.array([0, 1]), impl=impl)
    loss, (grad,) = value_and_pull(ours, logits)
    assert_close(loss, jnp.array([0.0, jnp.log(2.0)]))
    assert bool(jnp.isfinite(grad).all()) and float(grad[1, 0]) == 0


def test_what_is_kept():
    """The logits, a logarithm, a label and a bool of each row, and no probabilities."""
    logits, labels = normal((7, 33)), _labels((7, 33))
    ours = functools.partial(cross_entropy, labels=labels, smoothing=0.1)
    plain = functools.partial(_optax, labels=labels, smoothing=0.1)
    assert stored_bytes(ours, logits) == 4 * 7 * 33 + 7 * (4 + 4 + 1)
    assert stored_bytes(ours, logits, params=(0,)) == 7 * 9
    assert stored_bytes(plain, logits, params=(0,)) > 2 * 4 * 7 * 33


def test_one_class():
    loss, (grad,) = value_and_pull(
        lambda x: cross_entropy(x, jnp.zeros(2, jnp.int32)), normal((2, 1))
    )
    assert not loss.any() and not grad.any()
    with pytest.raises(ValueError, match="a single class"):
        cross_entropy(jnp.zeros((2, 1)), jnp.zeros(2, jnp.int32), smoothing=0.1)


def test_bad_inputs():
    logits, labels = jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32)
    for smoothing in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="from 0 to less than 1"):
            cross_entropy(logits, labels, smoothing=smoothing)
    with pytest.raises(ValueError, match="logits of floats: int32"):
        cross_entropy(logits.astype(jnp.int32), labels)
    with pytest.raises(ValueError, match=r"labels are \(2,\)"):
        cross_entropy(logits, jnp.zeros((2, 3), jnp.int32))
    with pytest.raises(ValueError, match="of integers: float32"):
        cross_entropy(logits, jnp.zeros(2))
    empty = cross_entropy(jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32), impl="pallas")
    assert empty.shape == (0,)
