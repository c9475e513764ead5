import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import Context, chain, nonfinite, quantize, ragged, top_k
from splitjax.codecs.indices import index_bytes, read_indices, write_indices
from splitjax.codecs.select import largest
from splitjax.core.codec import message_spec
from splitjax.core.tree import spec_of
from splitjax.runtime import frame

NORMAL = np.random.default_rng(0).normal(size=(3, 1030)).astype(np.float32)


def first_largest(x, k):
    """Of equal magnitudes the first, as a stable sort has them."""
    order = np.argsort(-np.abs(x.astype(np.float64)), axis=1, kind="stable")
    return np.sort(order[:, :k], axis=1)


# By way of groups, and of two levels of them; all keys at once, in one part or more.
@pytest.mark.parametrize(
    "shape, k", [((3, 1030), 2), ((1, 40000), 2), ((1, 20001), 9000)]
)
@pytest.mark.parametrize("kind", ["normal", "ties", "few", "bf16"])
def test_it_finds_the_exact_k_largest(shape, k, kind):
    """With many ties, with nearly all zeros, and on 16 bits."""
    x = np.resize(NORMAL, shape)
    if kind == "ties":
        x = np.round(x)
    elif kind == "few":
        x = np.where(np.arange(x.size).reshape(shape) % 1021 == 5, x, 0)
    x = jnp.asarray(x, jnp.bfloat16 if kind == "bf16" else jnp.float32)
    found = jax.jit(largest, static_argnames=("k", "rows"))(x, k, rows=len(x))
    np.testing.assert_array_equal(found, first_largest(np.asarray(x), k))


def test_it_takes_exactly_k_of_equal_values():
    y = send(top_k(0.5), jnp.full((2, 6), -3.0))[1]
    np.testing.assert_array_equal(y, [[-3.0, -3.0, -3.0, 0.0, 0.0, 0.0]] * 2)


def send(codec, x, mask=None):
    @jax.jit
    def run(x, mask):
        message, state = codec.encode(x, codec.init(x), Context(mask=mask))
        return message, codec.decode(message, state)[0], state

    return run(x, mask)


@pytest.mark.parametrize("n, k", [(1, 1), (7, 5), (768, 77), (100000, 3)])
def test_places_come_back_from_their_bytes(n, k):
    places = jnp.sort(jax.random.permutation(jax.random.key(n), n)[:k])[None]
    edges = jnp.concatenate([jnp.arange(k)[None], n - k + jnp.arange(k)[None]])
    places = jnp.concatenate([places, edges]).astype(jnp.int32)
    code = jax.jit(write_indices, static_argnums=1)(places, n)
    assert code.shape == (3, index_bytes(n, k)) and code.dtype == jnp.uint8
    assert index_bytes(n, k) <= -(-n // 8)
    back = jax.jit(read_indices, static_argnums=(1, 2))(code, n, k)
    np.testing.assert_array_equal(back, places)


def test_gaps_cost_little_more_than_the_entropy():
    n, k = 4096 * 768, 4096 * 8
    entropy = k * np.log2(n / k) + k * np.log2(np.e)
    assert 8 * index_bytes(n, k) < 1.1 * entropy


def test_bytes_that_nobody_wrote_do_no_harm():
    codec, x = top_k(8), jnp.ones((2, 768))
    message = jax.eval_shape(lambda x: codec.encode(x, codec.init(x), Context())[0], x)
    hostile = jax.tree.map(
        lambda a: jnp.full(a.shape, 255 if a.dtype == jnp.uint8 else 1, a.dtype),
        message,
    )
    y, _ = jax.jit(codec.decode)(hostile, codec.init(x))
    assert y.shape == (2, 768) and set(np.unique(y)) <= {0.0, 1.0}


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((2, 3, 768), jnp.float32),
        ((2, 384), jnp.float32),
        ((2, 768), jnp.bfloat16),
        ((128, 784), jnp.float32),  # 401,408 bytes, SecretFlow's size: it saves 2x
    ],
)
@pytest.mark.parametrize("axis", ["token", "all"])
def test_90_percent_sparsity_saves_more_than_6x(shape, dtype, axis):
    """In the bytes of a real frame, its header included."""
    codec = top_k(0.1, axis=axis)
    spec = jax.ShapeDtypeStruct(shape, dtype)
    message = jax.tree.map(
        lambda a: np.zeros(a.shape, a.dtype), message_spec(codec, spec)
    )
    schema = frame.Schema.of(message)
    data = frame.write(schema, message, kind="up", run=0, slot=0, tick=0, hop=0)
    payload = len(data) - frame.framing_bytes(schema)
    assert np.prod(shape) * dtype.dtype.itemsize / payload > 6
    if shape == (128, 784):
        assert len(data) * 8 < 401_408


def test_a_codec_that_follows_takes_the_values():
    x = jax.random.normal(jax.random.key(0), (4, 200))
    exact, y, _ = send(top_k(0.1), x)
    coarse, z, _ = send(chain(top_k(0.1), quantize(8)), x)
    np.testing.assert_array_equal(y != 0, z != 0)
    assert 0 < float(jnp.max(jnp.abs(y - z))) < 0.02
    sizes = [sum(a.nbytes for a in jax.tree.leaves(m)) for m in (exact, coarse)]
    assert sizes[0] - sizes[1] == 4 * (20 * 3 - 4)  # a byte a value, step and low


def test_padding_is_never_taken_before_what_is_real():
    mask = jnp.array([[True, False], [True, True]])
    x = jnp.where(mask[..., None], jnp.arange(1.0, 13).reshape(2, 2, 3), 1e9)
    y = send(top_k(0.5, axis="example"), x, mask)[1]
    np.testing.assert_array_equal(y, [[[1, 2, 3], [0] * 3], [[0] * 3, [10, 11, 12]]])


def test_only_the_rows_of_real_tokens_cross():
    """Each as 25 codes, step and low, and its places; and a length for each example."""
    codec = chain(ragged(), top_k(0.125), quantize(8))
    mask = jnp.arange(3)[None] < jnp.array([3, 1])[:, None]
    x = {"h": jax.random.normal(jax.random.key(0), (2, 3, 200)), "mask": mask}
    message, y, _ = send(codec, x, mask)
    schema = frame.Schema.of(message_spec(codec, spec_of(x)))
    data = frame.write(schema, message, kind="up", run=0, slot=0, tick=0, hop=0)
    index = index_bytes(200, 25)
    assert len(data) - frame.framing_bytes(schema) == 4 * (25 + 4 + index) + 4
    kept = np.count_nonzero(y["h"], axis=-1)
    np.testing.assert_array_equal(kept, [[25, 25, 25], [25, 0, 0]])


def test_what_is_not_finite_is_not_taken():
    x = jnp.array([[jnp.nan, 1.0, jnp.inf, -2.0, 0.5, 3e38]])
    message, y, state = send(top_k(3), x)
    np.testing.assert_array_equal(y, [[0.0, 1.0, 0.0, -2.0, 0.5, 0.0]])
    assert int(nonfinite(state)) == 3


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5, float("nan"), True, "all"])
def test_what_is_no_part_and_no_count_is_refused(keep):
    with pytest.raises(ValueError, match="top_k"):
        top_k(keep)


def test_an_axis_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="did you mean 'token'"):
        top_k(0.1, axis="tokens")


def test_rows_of_an_unknown_count_have_no_all():
    codec = chain(ragged(), top_k(0.1, axis="all"))
    x = {"h": jnp.ones((2, 3, 8)), "mask": jnp.ones((2, 3), bool)}
    with pytest.raises(ValueError, match="axis='token'"):
        codec.encode(x, codec.init(spec_of(x)), Context())
