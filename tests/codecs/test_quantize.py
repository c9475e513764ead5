import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitjax.codecs import Context, Sized, nonfinite, quantize, wire_bytes
from splitjax.codecs.grid import round_down, round_up
from splitjax.core.codec import chain
from splitjax.core.lift import on_tree
from splitjax.core.noise import dither, uniform

KEY = jax.random.key(5)


def send(codec, x, ctx=None):
    ctx = ctx or Context(KEY)
    message, state = codec.encode(x, codec.init(x), ctx)
    return message, state, codec.decode(message, state)[0]


def steps(message, codec):
    """The steps on the wire, as float64."""
    step = np.asarray(message.node.step)
    return 2.0 ** step.astype(float) if step.dtype == np.int8 else step.astype(float)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("mode", ["affine", "symmetric"])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_the_error_is_at_most_half_a_step(bits, mode, power_of_two):
    scale = 10.0 ** np.linspace(-12, 12, 13)[:, None]
    x = np.random.default_rng(0).normal(0.3, 1, (13, 40)) * scale
    x = x.astype(np.float32)
    codec = quantize(bits, mode=mode, power_of_two=power_of_two)
    message, _, y = send(codec, jnp.asarray(x))
    step = steps(message, codec)[:, None]
    # 2^-22: the rounding of x - low and of low + code * step, in float32.
    slack = 2.0**-22 * np.abs(x).max(1, keepdims=True)
    assert (np.abs(x - np.float64(y)) <= step / 2 * (1 + 2**-20) + slack).all()


def test_steps_are_not_wasteful():
    """At most what bfloat16 costs above the best step."""
    x = jax.random.normal(KEY, (50, 64))
    message, _, _ = send(quantize(4), x)
    best = (x.max(1) - x.min(1)) / 15
    assert float((message.node.step.astype(jnp.float32) / best).max()) < 1.02


@pytest.mark.parametrize("axis, shared", [("token", 1), ("channel", 0)])
def test_an_axis_shares_a_grid(axis, shared):
    x = jax.random.normal(KEY, (6, 5))
    message, _, _ = send(quantize(4, axis=axis), x)
    assert message.node.step.shape == (x.shape[1 - shared],)


def test_a_short_group_has_a_grid_of_its_own():
    x = jnp.concatenate([jnp.full((2, 4), 1000.0), jnp.array([[0.1, 0.2]] * 2)], 1)
    message, _, y = send(quantize(8, axis="group", group=4), x)
    assert message.node.step.shape == (4,)
    np.testing.assert_allclose(y, x, atol=1e-3)


def test_four_bits_are_eight_times_fewer_bytes():
    x = jax.random.normal(KEY, (16, 96))
    message, _, _ = send(quantize(4), x)
    assert len(np.asarray(x).tobytes()) == 8 * len(
        bytes(np.asarray(message.node.codes))
    )
    spec = jax.ShapeDtypeStruct((32, 128, 768), jnp.float32)
    assert wire_bytes(quantize(4), spec) < 32 * 128 * 768 * 4 / 7.9


@pytest.mark.parametrize("make", [jnp.zeros, jnp.ones, lambda s: jnp.full(s, jnp.nan)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (3, 5)])
def test_four_bits_are_half_bytes_for_any_input(make, dtype, shape):
    x = make(shape).astype(dtype)
    message, _, _ = send(quantize(4, mode="symmetric"), x)
    assert len(bytes(np.asarray(message.node.codes))) == -(-x.size // 2)


@pytest.mark.parametrize("mode", ["affine", "symmetric"])
@pytest.mark.parametrize("bits", [2, 8])
def test_zeros_stay_zeros(mode, bits):
    assert not send(quantize(bits, mode=mode), jnp.zeros((3, 4)))[2].any()


@pytest.mark.parametrize("value", [3.7, -1e-6, 12345.678])
def test_a_constant_is_nearly_exact(value):
    x = jnp.full((2, 9), value)
    np.testing.assert_allclose(send(quantize(8), x)[2], x, rtol=2.0**-15)
    np.testing.assert_allclose(send(quantize(2), x)[2], x, rtol=2.0**-9)


def test_symmetric_keeps_zeros_among_others():
    x = jnp.array([[0.0, -3.0, 0.01, 7.0]])
    assert float(send(quantize(3, mode="symmetric"), x)[2][0, 0]) == 0.0


def test_non_finite_values_are_counted_and_do_not_spread():
    x = jnp.array([[1.0, jnp.nan, 2.0, jnp.inf], [1.0, 0.5, 2.0, -1.0]])
    for axis in ("token", "channel", "group"):
        codec = quantize(8, axis=axis, group=3)
        _, state, y = send(codec, x)
        assert int(nonfinite(state)) == 2
        np.testing.assert_allclose(y, jnp.where(jnp.isfinite(x), x, 0), atol=0.02)
        message, state = codec.encode(x, state, Context())
        assert int(nonfinite(state)) == 4


def test_a_nan_that_ends_a_short_group_counts_once():
    x = jnp.array([[1.0, 2.0, 3.0, 4.0, jnp.nan]])
    assert int(nonfinite(send(quantize(8, axis="group", group=4), x)[1])) == 1


def test_counts_are_found_in_chains_and_trees():
    codec = on_tree({"h": chain(quantize(8)), "g": quantize(4)})
    x = {"h": jnp.array([jnp.nan, 1.0]), "g": jnp.array([jnp.inf])}
    assert int(nonfinite(send(codec, x)[1])) == 2
    assert int(nonfinite(())) == 0


def test_half_precision_does_not_overflow():
    x = jnp.array([[65504.0, -65504.0, 1.0]], jnp.float16)
    assert np.isfinite(send(quantize(3), x)[2]).all()


def test_padding_does_not_widen_a_channel():
    x = jnp.stack([jnp.linspace(0, 1, 8), jnp.full(8, 1e6)])[:, :, None]
    mask = jnp.stack([jnp.ones(8, bool), jnp.zeros(8, bool)])
    _, state, y = send(quantize(8, axis="channel"), x, Context(mask=mask))
    np.testing.assert_allclose(y[0], x[0], atol=0.01)
    x = x.at[1].set(jnp.nan)
    _, state, z = send(quantize(8, axis="channel"), x, Context(mask=mask))
    assert int(nonfinite(state)) == 0
    np.testing.assert_array_equal(z, y)


def test_unused_rows_do_not_widen_a_channel():
    x = Sized(jnp.full((4, 3), 100.0).at[2:].set(0.0), jnp.int32(2))
    message, _, y = send(quantize(8, axis="channel"), x)
    assert float(message.node.low.min()) == 100.0
    np.testing.assert_array_equal(y.buffer, x.buffer)


def test_stochastic_rounding_is_unbiased():
    x = jax.random.normal(KEY, (4, 33))
    codec = quantize(3, rounding="stochastic")
    n = 400

    def one(key):
        message, state = codec.encode(x, codec.init(x), Context(key))
        return codec.decode(message, state)[0]

    y = np.float64(jax.jit(jax.vmap(one))(jax.random.split(KEY, n)))
    step = steps(send(codec, x)[0], codec)[:, None]
    # A rounding to one of two neighbors has a deviation of at most half a step.
    assert (np.abs(y.mean(0) - x) <= 4 * step / 2 / n**0.5).all()
    assert (np.abs(y - np.asarray(x)) < step * 1.001).all()
    z = (y - y.mean(0)) / (y.std(0) + 1e-9)
    neighbors = (z[..., 1:] * z[..., :-1]).mean()
    assert abs(neighbors) < 4 / z[..., 1:].size ** 0.5


def test_stochastic_rounding_needs_a_key():
    with pytest.raises(ValueError, match="needs a key"):
        send(quantize(4, rounding="stochastic"), jnp.ones(3), Context())


def test_leaves_and_keys_draw_unlike_noise():
    x = {"a": jax.random.normal(KEY, (64,)), "b": jax.random.normal(KEY, (64,))}
    codec = quantize(2, rounding="stochastic")
    _, _, y = send(codec, x)
    _, _, z = send(codec, x, Context(jax.random.key(6)))
    assert (y["a"] != y["b"]).any() and (y["a"] != z["a"]).any()


def test_noise_is_uniform():
    u = np.asarray(uniform(KEY, (100_000,)))
    counts, _ = np.histogram(u, 50, (0, 1))
    # Chi squared with 49 degrees of freedom: 49 +- 4 * sqrt(98).
    assert abs(((counts - 2000) ** 2 / 2000).sum() - 49) < 40


def test_numbers_of_dither_are_uniform_and_any_two_independent():
    noise = np.asarray(dither(KEY, 256, 320))
    u = (noise >> 17) / 2.0**15
    counts, _ = np.histogram(u, 64, (0, 1))
    # Chi squared with 63 degrees of freedom: 63 +- 4 * sqrt(126).
    assert abs(((counts - 1280) ** 2 / 1280).sum() - 63) < 45
    z = (u - 0.5) * 12**0.5
    # No rows or columns alike: singular values as of a matrix of independent numbers,
    # which end at sqrt(256) + sqrt(320).
    assert np.linalg.norm(z, 2) < 1.1 * (256**0.5 + 320**0.5)
    for row, column in ((1, 0), (0, 1), (1, 1), (7, 64), (128, 0)):
        other = np.roll(z, (row, column), (0, 1))
        for moment in (z * other, (z**2 - 1) * (other**2 - 1)):
            assert abs(moment.mean()) < 4 * moment.std() / moment.size**0.5
    again = np.asarray(dither(jax.random.key(6), 256, 320))
    assert abs(((again >> 17) / 2.0**15 - 0.5).ravel() @ z.ravel()) < 4 * z.size**0.5


@pytest.mark.parametrize("mode", ["affine", "symmetric"])
def test_stochastic_rounding_leaves_the_points_of_the_grid(mode):
    x = jnp.tile(jnp.arange(-127.0, 128.0), (64, 1))
    codec = quantize(8, mode=mode, rounding="stochastic", power_of_two=True)
    np.testing.assert_array_equal(send(codec, x)[2], x)


@pytest.mark.parametrize("axis", ["token", "channel"])
def test_stochastic_rounding_keeps_small_parts_of_a_step(axis):
    """A hundredth of a step, which the nearest point would lose, is left in a sum."""
    x = jnp.full((256, 320), 17.01).at[:, 0].set(0.0).at[:, 1].set(255.0)
    x = x if axis == "token" else x.at[0].set(0.0).at[1].set(255.0)
    part = np.float64(send(quantize(8, axis=axis, rounding="stochastic"), x)[2])
    part = part[2:, 2:] - 17
    assert set(np.unique(part)) == {0.0, 1.0}
    assert abs(part.mean() - 0.01) < 4 * (0.01 / part.size) ** 0.5


def test_both_ends_hold_equal_sums():
    """m + decoded, in a fused program and in NumPy, after many messages."""
    codec = quantize(4, power_of_two=True, mode="symmetric")

    @jax.jit
    def fused(m, x):
        message, state = codec.encode(x - m, codec.init(x), Context())
        return m + codec.decode(message, state)[0], message

    decode = jax.jit(codec.decode)
    m, mirror = jnp.zeros((8, 16)), np.zeros((8, 16), np.float32)
    for i in range(20):
        x = jax.random.normal(jax.random.key(i), (8, 16))
        m, message = fused(m, x)
        mirror = mirror + np.asarray(decode(message, codec.init(x))[0])
    np.testing.assert_array_equal(m, mirror)


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"bits": 1}, r"quantize\(bits=1\): bits must be 2 to 8"),
        ({"bits": 9}, r"quantize\(bits=9\): bits must be 2 to 8"),
        ({"bits": 4, "axis": "row"}, "axis='row'.*token"),
        ({"bits": 4, "mode": "linear"}, "mode='linear'.*affine"),
        ({"bits": 4, "rounding": "up"}, "rounding='up'.*nearest"),
        ({"bits": 4, "group": 0}, r"group=0\): a group has at least 1"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        quantize(**arguments)


@given(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False))
@settings(max_examples=60, deadline=None)
def test_bounds_are_bfloat16_and_on_the_right_side(value):
    x = jnp.float32(value)
    up, down = round_up(x), round_down(x)
    assert abs(float(up)) >= abs(value) and float(down) <= value
    for bound in (up, down):
        assert float(bound) == float(bound.astype(jnp.bfloat16))
        assert abs(float(bound) - value) <= 2.0**-7 * abs(value)
