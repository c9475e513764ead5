import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.metrics.loss import cross_entropy, squared_error, valid_rows


def target(y, n_valid):
    return {"y": jnp.asarray(y), "n_valid": jnp.int32(n_valid)}


def regression(junk):
    y = jnp.array([1.0, 2.0, 5.0, junk])
    return y, target([0.0, 4.0, 5.0, -junk], 3)


def classification(junk):
    y = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [junk, -junk]])
    return y, target([0, 0, 0, 1], 3)


LOSSES = {
    "squares": (squared_error, regression),
    "entropy": (cross_entropy, classification),
}


def test_hand_numbers():
    value, metrics = squared_error(*regression(9.0))
    assert float(value) == pytest.approx((1 + 4 + 0) / 3) and metrics == {}
    value, metrics = cross_entropy(*classification(9.0))
    want = np.log([2, 1 + np.exp(-2), 1 + np.e]).mean()
    assert float(value) == pytest.approx(want, rel=1e-6)
    assert float(metrics["accuracy"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_beyond_the_valid_ones_count_for_nothing(name):
    loss, make = LOSSES[name]

    def both(junk):
        y, wanted = make(junk)
        return jax.value_and_grad(lambda y: loss(y, wanted)[0])(y)

    (one, slope), (other, slope2) = both(3.0), both(-7.0)
    assert one == other
    np.testing.assert_array_equal(slope, slope2)
    assert not slope[3:].any() and slope[:2].any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_examples_has_no_loss(name):
    loss, make = LOSSES[name]
    y, wanted = make(1.0)
    value, metrics = loss(y, {**wanted, "n_valid": jnp.int32(0)})
    assert float(value) == 0.0 == float(metrics.get("accuracy", 0.0))


@pytest.mark.parametrize("name", LOSSES)
def test_low_precision_is_summed_in_float32(name):
    loss, make = LOSSES[name]
    y, wanted = make(1.0)
    value, _ = loss(y.astype(jnp.bfloat16), wanted)
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(float(loss(y, wanted)[0]))


def test_valid_rows_are_the_first():
    for count in (0, 2, 3):
        assert valid_rows(target([], count), 3).sum() == count
    assert valid_rows(target([], 1), 3).tolist() == [1.0, 0.0, 0.0]
