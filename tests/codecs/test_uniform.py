"""What is special to `uniform`: one step for all, and what a coder makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import Context, chain, lossless, quantize, ragged, uniform
from splitjax.core.codec import message_spec
from splitjax.core.message import Sized
from splitjax.core.tree import spec_of
from splitjax.runtime import frame
from splitjax.runtime.schema import Schema

AT = {"kind": "up", "run": 1, "slot": 0, "tick": 0, "hop": 0}


def sent(codec, x, ctx=None):
    """The bytes of a frame, the sender's state, and what the other end decodes."""
    ctx = ctx or Context()
    message, state = jax.jit(codec.encode)(x, codec.init(spec_of(x)), ctx)
    schema = Schema.of(message_spec(codec, spec_of(x)))
    data = frame.write(schema, message, **AT)
    _, arrived = frame.read(schema, data)
    return len(data), state, codec.decode(arrived, codec.init(spec_of(x)))[0]


@pytest.mark.parametrize(
    "step, dtype",
    [(2.0**-40, jnp.float32), (2.0**40, jnp.bfloat16)]
    + [(s, d) for s in (0.3, 7.3) for d in (jnp.float32, jnp.bfloat16, jnp.float16)],
)
def test_no_value_is_further_off_than_half_a_step(step, dtype):
    rows = np.random.default_rng(0).normal(size=(20, 16)) * 50 * step
    x = jnp.asarray(rows, jnp.float32).astype(dtype)
    _, _, y = sent(uniform(step), x)
    assert y.dtype == dtype
    near = float(jnp.bfloat16(step))
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    # What is decoded is rounded to the dtype, and a code's place once to float32.
    slack = (float(jnp.finfo(dtype).eps) + 2.0**-23) * np.abs(y)
    assert (np.abs(x - y) <= near / 2 + slack).all()
    assert np.abs(x).max() > 50 * near


def test_what_is_decoded_is_a_product_without_rounding():
    step = 0.1  # its bfloat16 is 0.10009765625
    x = jnp.linspace(-3000, 3000, 4001)[None]
    codes = uniform(step).encode(x, uniform(step).init(x), Context())[0].node.codes
    _, _, y = sent(uniform(step), x)
    exact = np.asarray(codes, np.float64) * float(jnp.bfloat16(step))
    np.testing.assert_array_equal(np.asarray(y, np.float64), exact)
    assert np.abs(np.asarray(codes)).max() > 2**14


def test_what_is_not_finite_and_what_is_too_large_is_counted_apart():
    x = jnp.array([[jnp.nan, jnp.inf, 3e38], [1e6, -1e6, 1.0]])
    _, state, y = sent(uniform(1.0), x)
    assert int(state["nonfinite"]) == 3 and int(state["clipped"]) == 2
    assert y.tolist() == [[0, 0, 0], [32767, -32767, 1]]


def test_padding_is_nobodys_loss_and_does_not_cross():
    x = jnp.full((1, 2, 4), 9e9).at[0, 0].set(2.0).at[0, 1, 0].set(jnp.nan)
    ctx = Context(mask=jnp.array([[True, False]]))
    _, state, y = sent(uniform(0.5), x, ctx)
    assert not int(state["nonfinite"]) and not int(state["clipped"])
    assert y.tolist() == [[[2.0] * 4, [0.0] * 4]]


def test_one_step_for_all_is_better_than_a_grid_for_each():
    """Directions of unlike variance: the same bytes, under half of the error."""
    rng = np.random.default_rng(0)
    spread = 2.0 ** np.linspace(2, -4, 64)
    h = jnp.asarray(rng.normal(size=(2, 400, 64)) * spread, jnp.float32)
    x = {"h": h, "mask": jnp.ones((2, 400), bool)}
    ctx = Context(mask=x["mask"])
    grids, _, y = sent(chain(ragged(), quantize(3, axis="channel")), x, ctx)
    codec = chain(ragged(), uniform(0.65), lossless("columns"))
    coded, _, z = sent(codec, x, ctx)
    assert coded < grids
    error, less = (float(jnp.mean((h - a["h"]) ** 2)) for a in (y, z))
    assert less < 0.5 * error


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_relative_step_goes_with_the_scale(rounding, key):
    codec = uniform(0.25, relative=True, rounding=rounding)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 32)), jnp.float32)
    _, _, y = sent(codec, x, Context(key))
    far = 0.125 if rounding == "nearest" else 0.25
    assert 0.8 * far < float(jnp.abs(x - y).max()) < 1.02 * far
    for scale in (2.0**-80, 2.0**90):
        _, _, z = sent(codec, x * scale, Context(key))
        np.testing.assert_array_equal(np.asarray(z), np.asarray(y) * np.float32(scale))


def test_padding_does_not_set_the_step():
    codec = uniform(0.25, relative=True)
    x = jnp.full((2, 4, 8), 1e5).at[:, :2].set(1.0)
    mask = jnp.zeros((2, 4), bool).at[:, :2].set(True)
    message, _ = codec.encode(x, codec.init(x), Context(mask=mask))
    assert float(message.node.step[0]) == 0.25
    rows = Sized(jnp.zeros((9, 8)).at[:2].set(1.0), jnp.int32(2))
    message, _ = codec.encode(rows, codec.init(rows), Context())
    assert float(message.node.step[0]) == 0.25
    _, _, y = sent(codec, jnp.zeros((3, 3)))
    assert not np.asarray(y).any()


def test_stochastic_rounding_is_right_on_average(key):
    codec, x = uniform(1.0, rounding="stochastic"), jnp.full((400, 500), 0.3)
    for shift in (0.0, -20000.0):
        _, _, y = sent(codec, x + shift, Context(key))
        assert set(np.unique(y)) == {shift, shift + 1}
        share = float((y - shift).mean())
        assert share == pytest.approx(float(x[0, 0] + shift) - shift, abs=0.005)
    _, _, y = sent(codec, jnp.full((400, 500), 20000.0), Context(key))
    assert set(np.unique(y)) == {20000.0}  # a whole number of steps stays one
    with pytest.raises(ValueError, match="needs a key"):
        codec.encode(x, codec.init(x), Context())


def test_other_options_are_refused():
    with pytest.raises(ValueError, match="rounding='up'"):
        uniform(1.0, rounding="up")
    with pytest.raises(ValueError, match="relative='no'"):
        uniform(1.0, relative="no")


@pytest.mark.parametrize(
    "step", [0, -1.0, float("nan"), float("inf"), 2.0**41, "1", True]
)
def test_other_steps_are_refused(step):
    with pytest.raises(ValueError, match="from 2\\^-40 to 2\\^40"):
        uniform(step)
