import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import (
    Context,
    Sized,
    binary,
    nonfinite,
    pack_signs,
    scaled_sign,
    sign,
    wire_bytes,
)


def send(codec, x, **ctx):
    state = codec.init(x)
    message, tx = codec.encode(x, state, Context(**ctx))
    return codec.decode(message, state)[0], tx


def test_padding_is_not_counted():
    x, mask = jnp.array([[jnp.nan, 1.0], [jnp.nan, -1.0]]), jnp.array([True, False])
    assert int(nonfinite(send(sign(), x, mask=mask)[1])) == 1
    assert int(nonfinite(send(sign(), x)[1])) == 2


def test_packed_signs_are_one_bit():
    codec = pack_signs()
    assert wire_bytes(codec, jax.ShapeDtypeStruct((3, 5), jnp.float32)) == 2
    x = jnp.array([[-0.0, 2.0, -3.0, jnp.nan, 0.0]], jnp.bfloat16)
    y, _ = send(codec, x)
    assert y.tolist() == [[1, 1, -1, 1, 1]] and y.dtype == jnp.bfloat16


def test_unused_rows_stay_zero():
    x = Sized(jnp.ones((4, 3)).at[2:].set(0.0), jnp.int32(2))
    y, _ = send(binary(), x)
    np.testing.assert_array_equal(y.buffer, x.buffer)


def test_centered_signs_tell_apart_what_a_relu_left():
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (16, 5, 3)) + 1.0)
    x = x * jnp.array([[[1.0, 100.0, 1e-3]]])
    y, _ = send(binary(center=True), x)
    mean = jnp.mean(x, (0, 1), keepdims=True)
    clear = jnp.abs(x - mean) > mean / 100  # the mean is rounded to 8 bits
    np.testing.assert_array_equal(y[clear], jnp.sign(x - mean)[clear])
    assert (send(binary(), x)[0] == 1).all()


@pytest.mark.parametrize("value", [0.3, -0.3, 0.5, 7e4, 1e-30])
def test_a_centered_constant_is_one(value):
    """However its mean is rounded."""
    y, _ = send(binary(center=True), jnp.full((37, 3), value))
    assert (y == 1).all()


@pytest.mark.parametrize("filler", [1e9, jnp.nan])
def test_padding_and_what_is_not_finite_enter_no_mean(filler):
    x = jax.random.normal(jax.random.key(0), (6, 4)) + 3
    few, _ = send(binary(center=True), x[:4])
    mask = jnp.arange(6) < 4
    padded, _ = send(binary(center=True), x.at[4:].set(filler), mask=mask)
    sized, _ = send(binary(center=True), Sized(x.at[4:].set(filler), jnp.int32(4)))
    np.testing.assert_array_equal(padded[:4], few)
    np.testing.assert_array_equal(sized.buffer[:4], few)
    if filler != filler:  # a NaN that is real is counted, and left out of the mean
        y, state = send(binary(center=True), x.at[4:].set(filler))
        assert int(nonfinite(state)) == 8
        np.testing.assert_array_equal(y[:4], few)


@pytest.mark.parametrize("axis, other", [("token", 1), ("channel", 0)])
def test_a_scaled_sign_has_the_mean_magnitude(axis, other):
    x = jax.random.normal(jax.random.key(0), (6, 10))
    y, _ = send(scaled_sign(axis), x)
    mean = jnp.mean(jnp.abs(x), other, keepdims=True)
    np.testing.assert_allclose(y, jnp.sign(x) * mean, rtol=2**-8)


def test_it_is_the_nearest_multiple_of_the_signs():
    x = jax.random.normal(jax.random.key(0), (1, 50))
    y, _ = send(scaled_sign(), x)
    errors = [float(jnp.sum((x - c * y) ** 2)) for c in (0.95, 1.0, 1.05)]
    assert errors[1] < min(errors[0], errors[2]) < float(jnp.sum(x**2))


def test_padding_is_left_out():
    mask = jnp.array([[True, True, False]])
    x = jnp.array([[[1.0], [-3.0], [jnp.nan]]])
    y, tx = send(scaled_sign("channel"), {"h": x, "mask": mask}, mask=mask)
    assert y["h"][0, :2, 0].tolist() == [2.0, -2.0] and int(nonfinite(tx)) == 0
    _, tx = send(scaled_sign("token"), {"h": x, "mask": mask}, mask=mask)
    assert int(nonfinite(tx)) == 0


def test_what_is_not_finite_is_counted_and_leaves_the_scale_alone():
    x = jnp.array([[1.0, jnp.nan, -jnp.inf, -3.0]])
    y, tx = send(scaled_sign(), x)
    assert y.tolist() == [[1.0, 1.0, -1.0, -1.0]] and int(nonfinite(tx)) == 2


def test_large_and_half_precision_scales_are_finite():
    y, _ = send(scaled_sign(), jnp.full((1, 9), 2.0**125))
    assert jnp.isfinite(y).all()
    y, _ = send(scaled_sign(), jnp.full((1, 3), 65504.0, jnp.float16))
    assert y.tolist() == [[65504.0] * 3]


def test_one_bit_and_a_scale_for_each_row():
    spec = jax.ShapeDtypeStruct((32, 768), jnp.float32)
    assert wire_bytes(scaled_sign(), spec) == 32 * (768 // 8 + 2)
    with pytest.raises(ValueError, match="token"):
        scaled_sign("tokens")
