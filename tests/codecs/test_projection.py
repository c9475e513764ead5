import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import (
    Context,
    Sized,
    chain,
    nonfinite,
    projection,
    quantize,
    wire_bytes,
)
from splitjax.core.codec import message_spec
from splitjax.core.tree import spec_of
from splitjax.runtime import frame

D, R = 24, 3
MIX = np.random.default_rng(1).normal(size=(2, D, D)).astype(np.float32)


def rows(seed, which=0, decay=0.4, shape=(4, 16)):
    """Normal rows whose principal values fall by `decay`, in directions `which`."""
    turn = np.linalg.qr(MIX[which])[0]
    x = np.random.default_rng(seed).normal(size=(*shape, D)) * decay ** np.arange(D)
    return jnp.asarray(x @ turn.T, jnp.float32)


def run(codec, xs):
    """Messages and what is decoded of them, with the states of two ends."""
    encode, decode = jax.jit(codec.encode), jax.jit(codec.decode)
    tx = rx = codec.init(spec_of(xs[0]))
    for x in xs:
        message, tx = encode(x, tx, Context())
        y, rx = decode(message, rx)
        yield message, y, tx, rx


def error(y, x):
    return float(jnp.linalg.norm(y - x) / jnp.linalg.norm(x))


def best(x):
    """What no projection to R dimensions falls below, by the singular values."""
    s = np.linalg.svd(np.asarray(x, np.float64).reshape(-1, D), compute_uv=False)
    return np.sqrt((s[R:] ** 2).sum() / (s**2).sum())


def test_the_first_message_is_near_the_best_projection():
    x = rows(0)
    [(_, y, _, _)] = run(projection(R), [x])
    assert best(x) <= error(y, x) * 1.0001 and error(y, x) < 1.05 * best(x)


def test_data_of_low_rank_comes_back():
    x = rows(0) @ jnp.asarray(MIX[0][:, :R] @ MIX[1][:R])
    [(_, y, _, _)] = run(projection(R), [x])
    assert error(y, x) < 1e-5


def test_a_basis_crosses_on_its_schedule_and_is_counted():
    codec, xs = projection(R, every=3), [rows(seed) for seed in range(7)]
    spec = spec_of(xs[0])
    schema = frame.Schema.of(message_spec(codec, spec))
    sizes = []
    for message, _, tx, rx in run(codec, xs):
        data = frame.write(schema, message, kind="up", run=0, slot=0, tick=0, hop=0)
        sizes.append(len(data) - frame.framing_bytes(schema))
        ends = [end["leaves"][0]["basis"] for end in (tx, rx)]
        assert np.asarray(ends[0]).tobytes() == np.asarray(ends[1]).tobytes()
    codes, basis = 64 * R * 4, D * R * 4
    assert sizes == [codes + basis * (i % 3 == 0) for i in range(7)]
    assert wire_bytes(codec, spec) == codes + basis


def test_a_refresh_follows_data_that_turns_away():
    before, after = rows(0), [rows(seed, 1) for seed in range(1, 7)]
    fixed = [error(y, x) for (_, y, *_), x in _pairs(projection(R), before, after)]
    moved = [
        error(y, x) for (_, y, *_), x in _pairs(projection(R, every=2), before, after)
    ]
    assert fixed[0] < 0.1 and min(fixed[1:]) > 0.5
    assert moved[-1] < 1.3 * best(after[-1])


def _pairs(codec, before, after):
    return zip(run(codec, [before, *after]), [before, *after], strict=True)


def test_padding_and_nan_do_not_weigh_in_the_basis():
    codec, mask = projection(R), jnp.arange(16)[None] < jnp.array([[16], [9], [3], [1]])
    x = rows(0)
    spoilt = jnp.where(mask[..., None], x, 1e6).at[0, 0, 0].set(jnp.nan)
    clean = jnp.where(mask[..., None], x, 0.0).at[0, 0, 0].set(0.0)
    encode = jax.jit(lambda x: codec.encode(x, codec.init(x), Context(mask=mask)))
    (spoilt, state), (clean, _) = encode(spoilt), encode(clean)
    jax.tree.map(np.testing.assert_array_equal, spoilt, clean)
    assert int(nonfinite(state)) == 1


def test_until_something_has_crossed_the_basis_is_sent_again():
    x = rows(0)
    made = list(run(projection(R), [x * 0, x * 0, x, x]))
    used = [int(message.node.basis.used) for message, *_ in made]
    assert used == [D, D, D, 0]
    assert error(made[2][1], x) < 1.05 * best(x)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_x_does_not_matter(size):
    x = rows(0)
    [(_, y, _, _)] = run(projection(R), [x * size])
    assert error(y / size, x) < 1.05 * best(x)


def test_codes_are_quantized_and_the_basis_is_not():
    """For rows of which only some are used, as ragged leaves them."""
    codec = chain(projection(R), quantize(8))
    x = rows(0, shape=(20,))
    x = Sized(jnp.where(jnp.arange(20)[:, None] < 13, x, 0.0), jnp.int32(13))
    message, state = jax.jit(codec.encode)(x, codec.init(spec_of(x)), Context())
    y, _ = jax.jit(codec.decode)(message, state)
    assert error(y.buffer, x.buffer) < best(x.buffer) + 0.02
    schema = frame.Schema.of(message_spec(codec, spec_of(x)))
    data = frame.write(schema, message, kind="up", run=0, slot=0, tick=0, hop=0)
    assert len(data) - frame.framing_bytes(schema) == 13 * (R + 4) + D * R * 4


@pytest.mark.parametrize("shape", [(0, D), (4, 0), (), (D,), (4, R)])
def test_what_has_no_basis_crosses_whole(shape):
    x = jnp.ones(shape)
    codec = projection(R)
    message, state = codec.encode(x, codec.init(x), Context())
    assert message.node.basis is None
    np.testing.assert_array_equal(codec.decode(message, state)[0], x)


def test_bad_arguments_and_another_depth_are_refused():
    with pytest.raises(ValueError, match="rank=0"):
        projection(0)
    with pytest.raises(ValueError, match="every=-1"):
        projection(2, every=-1)
    codec = projection(R)
    with pytest.raises(ValueError, match=r"last axis of 24 .* shape \[2, 30\]"):
        codec.encode(jnp.ones((2, 30)), codec.init(jnp.ones((2, D))), Context())
