"""What is special to `bounded`: the bound, the ways around it, and the bytes."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from splitjax.codecs import (
    Context,
    Sized,
    bounded,
    chain,
    nonfinite,
    quantize,
)
from splitjax.codecs.planes import PLAIN, pack_blocks, unpack_blocks
from splitjax.codecs.tolerance import below, step_of
from splitjax.core.codec import wire_bytes
from splitjax.core.tree import spec_of
from splitjax.runtime import frame

SHAPE = (48, 80)
RNG = np.random.default_rng(0)
GRID = np.stack(np.meshgrid(np.linspace(0, 3, 80), np.linspace(0, 2, 48)))
SPARSE = np.maximum(RNG.normal(size=SHAPE) - 1, 0)
DATA = {
    "normal": RNG.normal(size=SHAPE),
    "heavy-tailed": RNG.standard_cauchy(size=SHAPE) ** 3,
    "ramp": np.linspace(-5, 7, 3840).reshape(SHAPE),
    "sparse": SPARSE,
    "denormal": RNG.normal(size=SHAPE) * 1e-40,
    "smooth": np.sin(GRID[0]) * np.cos(GRID[1]),
    "zeros": np.zeros(SHAPE),
    "constant": np.full(SHAPE, 3.7),
    "huge": RNG.uniform(-3, 3, SHAPE) * 1e38,
    "large": 1e6 + RNG.normal(size=SHAPE),
    "far apart": np.where(RNG.random(SHAPE) < 2e-3, 1e30, SPARSE),
    "steps": np.round(RNG.normal(size=SHAPE) * 8) * 0.125,  # ties at eb = 1/16
    "GELU": np.asarray(jax.nn.gelu(RNG.normal(size=SHAPE).astype(np.float32))),
}
DATA = {name: a.astype(np.float32) for name, a in DATA.items()}


@functools.cache
def crossing(codec):
    def run(x):
        message, state = codec.encode(x, codec.init(spec_of(x)), Context())
        return codec.decode(message, codec.init(spec_of(x)))[0], message, state

    return jax.jit(run)


def sent_bytes(codec, x):
    message = crossing(codec)(x)[1]
    return frame.payload_bytes(jax.device_get(message))


@jax.jit
def crossing_of(x, eb):
    codec = bounded(eb)
    message, state = codec.encode(x, codec.init(x), Context())
    return codec.decode(message, state)[0], message, state


ABSOLUTE = bounded(0.0625)
RELATIVE = bounded(1e-3, relative=True, predictor="lorenzo2d")
WHOLE = bounded(0.03, predictor="lorenzo1d", block=None)
MEMBERS = {"absolute": ABSOLUTE, "relative": RELATIVE, "whole": WHOLE}


@pytest.mark.parametrize(
    "member, dtype",
    [
        ("absolute", np.float32),
        ("absolute", ml_dtypes.bfloat16),
        ("absolute", np.float16),
        ("relative", np.float32),
        ("whole", np.float32),
        pytest.param("relative", ml_dtypes.bfloat16, marks=pytest.mark.slow),
        pytest.param("relative", np.float16, marks=pytest.mark.slow),
        pytest.param("whole", ml_dtypes.bfloat16, marks=pytest.mark.slow),
        pytest.param("whole", np.float16, marks=pytest.mark.slow),
    ],
)
def test_no_value_is_off_by_more_than_the_bound(member, dtype):
    """To the last bit, in exact arithmetic, and zeros are zeros."""
    for name, x in DATA.items():
        with np.errstate(over="ignore"):
            x = x.astype(dtype)
        y, _, _ = crossing(MEMBERS[member])(jnp.asarray(x))
        wide, back = np.float64(x), np.float64(np.asarray(y))
        finite = np.isfinite(wide)
        eb = {"absolute": 0.0625, "whole": 0.03}.get(member)
        if eb is None:
            eb = 1e-3 * np.ptp(wide[finite]) if finite.any() else 0
        assert y.dtype == x.dtype
        assert np.abs(wide[finite] - back[finite]).max(initial=0) <= eb, name
        assert not back[wide == 0].any(), name
        np.testing.assert_array_equal(wide[~finite], back[~finite])


@pytest.mark.parametrize("eb", [2.0**-99, 1e-20, 1e-3, 0.1, 1.0, 1e10, 2.0**110])
def test_any_bound_holds(eb):
    x = jnp.asarray(RNG.uniform(-1, 1, (8, 64)) * min(eb * 100, 8e37), jnp.float32)
    y, _, state = crossing_of(x, jnp.float32(below(eb)))
    assert np.abs(np.float64(x) - np.float64(y)).max() <= eb
    assert int(state["raw"]) == 0


@pytest.mark.parametrize("eb", [0.0, -1.0, np.nan, np.inf, 1e-38, 3e38])
def test_a_traced_bound_that_is_none_loses_nothing(eb):
    x = jnp.asarray(DATA["normal"][:8, :64])
    y, message, state = crossing_of(x, jnp.float32(eb))
    np.testing.assert_array_equal(x, y)
    assert int(state["raw"]) == 1 and int(message.node.body.used) == x.nbytes


def test_a_step_is_below_twice_the_bound_and_near_it():
    for eb in (0.5, 0.3, 1e-7, 123.4):
        eb = np.float32(eb)
        step = float(step_of(jnp.asarray(eb)))
        assert 0.984 * 2 * float(eb) < step < 2 * float(eb)


def test_numbers_add_up_exactly():
    """In float32 sums of differences would go wrong above 2^24."""
    x = np.cumsum(RNG.integers(0, 4000, SHAPE), axis=1) * 40.0  # up to 6e6
    x = jnp.asarray(x, jnp.float32)
    y, _, state = crossing(bounded(0.5, predictor="lorenzo1d"))(x)
    assert np.abs(np.float64(x) - np.float64(y)).max() <= 0.5
    assert int(state["raw"]) == 0


def test_what_is_not_finite_arrives_and_is_counted():
    x = DATA["normal"].copy()
    x[0, :3], x[5, 5] = [np.nan, np.inf, -np.inf], 1e38
    y, message, state = crossing(ABSOLUTE)(jnp.asarray(x))
    np.testing.assert_array_equal(np.asarray(y)[0, :3], x[0, :3])
    assert y[5, 5] == x[5, 5] and np.isfinite(np.asarray(y)).sum() == x.size - 3
    assert int(nonfinite(state)) == 3 and int(state["raw"]) == 0
    assert int(message.node.outliers.places.used) == 4
    assert not np.asarray(message.node.outliers.words.buffer)[4:].any()


def test_too_many_outliers_cross_as_they_are():
    x = DATA["normal"].copy()
    x[:, 0] = np.nan  # 48, and 30 would fit
    y, message, state = crossing(ABSOLUTE)(jnp.asarray(x))
    np.testing.assert_array_equal(x, y)
    assert int(state["raw"]) == 1
    assert int(message.node.outliers.places.used) == 0


def test_bytes_of_what_collapses_and_of_what_does_not():
    raw = 4 * 48 * 80
    cases = {name: sent_bytes(ABSOLUTE, jnp.asarray(DATA[name])) for name in DATA}
    assert cases["zeros"] <= raw / 100 and cases["constant"] <= raw / 100
    assert cases["denormal"] <= raw / 100
    assert cases["sparse"] < raw / 8
    noise = jnp.asarray(
        RNG.integers(0, 2**32, SHAPE).astype(np.uint32).view(np.float32)
    )
    for codec in MEMBERS.values():
        assert sent_bytes(codec, noise) <= 1.05 * raw
        assert wire_bytes(codec, noise) <= 1.05 * raw
        assert max(sent_bytes(codec, jnp.asarray(a)) for a in DATA.values()) <= raw + 4


def test_a_sign_is_only_sent_where_there_is_one():
    x = jnp.abs(jnp.asarray(DATA["normal"]))
    plus, minus = (int(crossing(ABSOLUTE)(a)[1].node.body.used) for a in (x, -x))
    blocks = x.size // 32
    assert 3 * blocks < minus - plus <= 4 * blocks


def test_a_smooth_field_and_what_a_predictor_costs_elsewhere():
    x = jnp.asarray(DATA["smooth"])
    plain = bounded(1e-3, relative=True)
    assert sent_bytes(RELATIVE, x) < 0.6 * sent_bytes(plain, x)
    x = jnp.asarray(DATA["normal"])
    assert sent_bytes(RELATIVE, x) > 1.05 * sent_bytes(plain, x)


@pytest.mark.slow
def test_neighbors_are_those_of_the_last_axes():
    """Channels last or first is not the same to a predictor."""
    x = np.broadcast_to(RNG.normal(size=(1, 1, 16)), (24, 10, 16))
    codec = bounded(1e-3, predictor="lorenzo1d")
    last = sent_bytes(codec, jnp.asarray(x, jnp.float32))
    first = sent_bytes(codec, jnp.asarray(x.transpose(2, 0, 1), jnp.float32))
    assert first < 0.8 * last


def test_padding_costs_nothing():
    h = jnp.asarray(DATA["normal"]).reshape(4, 12, 80)
    mask = jnp.arange(12)[None] < jnp.array([12, 3, 1, 0])[:, None]
    spoilt = jnp.where(mask[..., None], h, jnp.nan)
    encode, decode = jax.jit(ABSOLUTE.encode), jax.jit(ABSOLUTE.decode)
    message, state = encode(spoilt, ABSOLUTE.init(h), Context(mask=mask))
    y, _ = decode(message, state)
    assert int(nonfinite(state)) == 0 and not np.asarray(y)[~np.asarray(mask)].any()
    assert np.abs(np.asarray(y - h))[np.asarray(mask)].max() <= 0.0625
    assert frame.payload_bytes(jax.device_get(message)) < sent_bytes(ABSOLUTE, h) / 2


def test_only_used_rows_count_for_what_is_raw():
    noise = RNG.integers(0, 2**32, (8, 16)).astype(np.uint32).view(np.float32)
    noise[3:] = 0
    x = Sized(jnp.asarray(noise), jnp.int32(3))
    y, message, state = crossing(ABSOLUTE)(x)
    assert int(message.node.body.used) == 3 * 64 and int(state["raw"]) == 1
    np.testing.assert_array_equal(y.buffer, noise)
    assert int(y.used) == 3


def test_a_codec_that_follows_breaks_no_bound():
    """All that crosses is whole numbers: nothing is left to be rounded again."""
    x = jnp.asarray(DATA["far apart"])
    codec = chain(ABSOLUTE, quantize(2))
    np.testing.assert_array_equal(crossing(codec)(x)[0], crossing(ABSOLUTE)(x)[0])


@pytest.mark.parametrize("block", [8, 24])
def test_blocks_of_every_width(block):
    """From no bit to 32, and as many bytes as that makes."""
    tops = [0, 1, 2, 5, 100, 2**15, 2**24, 2**30, -1, -(2**30)]
    numbers = np.zeros((len(tops), block), np.int32)
    numbers[np.arange(len(tops)), RNG.integers(0, block, len(tops))] = tops
    flat = jnp.asarray(numbers.reshape(-1)[:-1])
    pack = jax.jit(pack_blocks, static_argnums=(1, 2))
    widths, packed, used = pack(flat, block, flat.size * 4)
    bits = [0, 1, 2, 3, 7, 16, 25, 31, 1, 31]
    if not numbers[-1, -1]:
        assert [w % PLAIN for w in widths.tolist()] == bits
        assert int(used) == sum(bits) * block // 8
    assert not packed[int(used) :].any()
    np.testing.assert_array_equal(unpack_blocks(widths, packed, flat.size, block), flat)


def test_hostile_widths_give_some_numbers():
    widths = jnp.asarray(RNG.integers(0, 256, 8), jnp.uint8)
    packed = jnp.asarray(RNG.integers(0, 256, 40), jnp.uint8)
    assert unpack_blocks(widths, packed, 250, 32).shape == (250,)


@pytest.mark.parametrize(
    "wrong, text",
    [
        (dict(eb=0.0), "eb=0.0"),
        (dict(eb=-1.0), "eb=-1.0"),
        (dict(eb=float("nan")), "eb=nan"),
        (dict(eb=float("inf")), "eb=inf"),
        (dict(eb=1e-40), "lossless"),
        (dict(eb=2.0, relative=True), "a share"),
        (dict(eb=1e-9, relative=True), "a share"),
        (dict(eb=1.0, predictor="lorenzo"), "did you mean"),
        (dict(eb=1.0, block=12), "block=12"),
        (dict(eb=1.0, block=0), "block=0"),
        (dict(eb=1.0, outliers=2), "outliers=2"),
        (dict(eb=jnp.ones(2)), "scalar"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(wrong, text):
    with pytest.raises(ValueError, match=text):
        bounded(**wrong)


def test_float64_is_refused():
    x = np.zeros(3, np.float64)
    with pytest.raises(ValueError, match="float64"):
        bounded(1.0).encode(x, bounded(1.0).init(x), Context())


@pytest.mark.slow
def test_a_random_search_finds_no_breach():
    codec, shape = bounded(0.1, block=8), (16, 16)
    random = np.random.default_rng(1)
    for _ in range(300):
        scale = 10.0 ** random.uniform(-6, 9)
        x = np.float32(random.standard_t(2, shape) * scale)
        x *= random.random(shape) < random.random()
        y = np.asarray(crossing(codec)(x)[0])
        assert np.abs(np.float64(x) - np.float64(y)).max() <= 0.1
