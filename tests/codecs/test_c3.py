import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import Context, c3, chain, nonfinite, quantize, ragged, wire_bytes
from splitjax.runtime import frame


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def send(codec, x, **ctx):
    state = codec.init(x)
    message, tx = codec.encode(x, state, Context(**ctx))
    return message, codec.decode(message, state)[0], tx


def test_both_ends_make_equal_keys_from_the_seed():
    one, same, other = (c3(3, seed=s).init(normal(4, 9)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one["keys"]["9"], same["keys"]["9"])
    assert one["keys"]["9"].shape == (2, 3, 5) and one["keys"]["9"].dtype == jnp.float32
    assert not np.allclose(one["keys"]["9"], other["keys"]["9"])
    assert c3(3, seed=1).name != c3(3, seed=2).name  # the ends compare names


@pytest.mark.parametrize("kind", ["gauss", "unitary"])
def test_keys_have_norm_one(kind):
    real, imaginary = c3(5, keys=kind).init(normal(1, 33))["keys"]["33"]
    magnitude = np.hypot(real, imaginary)
    keys = np.fft.irfft(np.asarray(real) + 1j * np.asarray(imaginary), n=33)
    np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1, rtol=1e-5)
    assert np.allclose(magnitude, 1, atol=1e-5) == (kind == "unitary")


@pytest.mark.parametrize("width", [7, 8, 1])
def test_one_unitary_row_is_exact(width):
    x = normal(3, width)
    np.testing.assert_allclose(send(c3(1, keys="unitary"), x)[1], x, atol=1e-5)


def test_used_rows_are_grouped_and_only_full_groups_cross():
    """11 tokens in groups of 4 are 3 rows; nobody's padding is in them."""
    mask = jnp.arange(8)[None] < jnp.array([6, 5])[:, None]
    h = jnp.where(mask[..., None], normal(2, 8, 64), jnp.nan)
    codec, x = chain(ragged(), c3(4), quantize(8)), {"h": h, "mask": mask}
    message, y, _ = send(codec, x)
    # Of a row 64 codes, step and low; the count that is short; two lengths.
    assert frame.payload_bytes(message) == 3 * (64 + 4) + 1 + 2 * 2
    tokens = jnp.concatenate([h[0, :6], h[1, :5]])
    _, alone, _ = send(chain(c3(4), quantize(8)), tokens)
    got = jnp.concatenate([y["h"][0, :6], y["h"][1, :5]])
    np.testing.assert_allclose(got, alone, atol=1e-5)
    assert not y["h"][0, 6:].any() and not y["h"][1, 5:].any()


@pytest.mark.parametrize("lengths", [[0, 0], [1, 0], [8, 8]])
def test_any_count_of_tokens_comes_back(lengths):
    mask = jnp.arange(8)[None] < jnp.array(lengths)[:, None]
    x = {"h": jnp.where(mask[..., None], normal(2, 8, 16), 0.0), "mask": mask}
    codec = chain(ragged(), c3(1, keys="unitary", center=True))
    np.testing.assert_allclose(send(codec, x)[1]["h"], x["h"], atol=1e-5)


def test_centered_rows_keep_their_mean_exactly():
    x = normal(6, 32) + jnp.arange(6.0)[:, None]
    message, y, _ = send(c3(3, center=True), x)
    np.testing.assert_allclose(jnp.mean(y, 1), jnp.mean(x, 1), atol=1e-5)
    assert abs(float(jnp.sum(message.node.code))) < 1e-3
    spec = jax.ShapeDtypeStruct(x.shape, x.dtype)
    assert wire_bytes(c3(3, center=True), spec) == 2 * 32 * 4 + 6 * 4


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e30])
def test_a_bad_value_does_not_reach_its_group(bad):
    x = normal(4, 16)
    _, y, tx = send(c3(4), x.at[1, 2:4].set(bad))
    _, expected, clean = send(c3(4), x.at[1, 2:4].set(0.0))
    np.testing.assert_array_equal(y, expected)
    assert int(nonfinite(tx)) == 2 and int(nonfinite(clean)) == 0


def test_padding_joins_no_group():
    mask = jnp.array([[1, 1], [1, 0]], bool)
    x = jnp.where(mask[..., None], normal(2, 2, 8), jnp.nan)
    message, _, tx = send(c3(2), {"h": x, "mask": mask}, mask=mask)
    clean = jnp.where(mask[..., None], x, 0.0)
    expected, _, _ = send(c3(2), {"h": clean, "mask": mask})
    np.testing.assert_array_equal(message["h"].node.code, expected["h"].node.code)
    assert int(nonfinite(tx)) == 0


@pytest.mark.parametrize(
    "ratio, more, text",
    [
        (0, {}, r"c3\(0\): a group has 1 to 256 rows"),
        (257, {}, r"c3\(257\): a group has 1 to 256 rows"),
        (2, {"keys": "gaus"}, "keys='gaus'.*did you mean 'gauss'"),
    ],
)
def test_bad_arguments_are_named(ratio, more, text):
    with pytest.raises(ValueError, match=text):
        c3(ratio, **more)


def test_rows_of_another_width_raise_on_both_ends():
    codec, x = c3(2), normal(4, 8)
    message, _, _ = send(codec, x)
    with pytest.raises(ValueError, match=r"rows of 6 values.*'8'.*shape"):
        codec.encode(normal(4, 6), codec.init(x), Context())
    with pytest.raises(ValueError, match="rows of 8 values"):
        codec.decode(message, codec.init(normal(4, 6)))
