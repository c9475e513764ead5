import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import Context, chain, quantize, ragged
from splitjax.runtime import frame

H = jax.random.normal(jax.random.key(0), (3, 4, 2))


def batch(lengths, h=H):
    return {"h": h, "mask": jnp.arange(4)[None] < jnp.array(lengths)[:, None]}


def test_tokens_stand_in_row_major_order():
    message, _ = ragged().encode(batch([2, 0, 3]), (), None)
    rows = message.tree["h"]
    assert int(rows.used) == 5 and message.lengths.dtype == jnp.uint16
    np.testing.assert_array_equal(rows.buffer[:5], [*H[0, :2], *H[2, :3]])
    assert not rows.buffer[5:].any()


def test_what_stood_in_the_padding_is_gone():
    x = batch([2, 0, 3], H.at[1].set(jnp.nan))
    message, _ = ragged().encode(x, (), None)
    y, _ = ragged().decode(message, ())
    assert jnp.isfinite(message.tree["h"].buffer).all()
    expected = np.where(np.asarray(x["mask"])[..., None], np.asarray(x["h"]), 0)
    np.testing.assert_array_equal(y["h"], expected)


@pytest.mark.parametrize("lengths", [[4, 4, 4], [0, 0, 0], [1, 4, 2]])
def test_the_gradient_has_the_rows_of_the_message(lengths):
    """It equals the gradient of the masked loss, and its rows past `used` are zero."""
    x = batch(lengths)
    message, _ = ragged().encode(x, (), None)
    c = jax.random.normal(jax.random.key(1), H.shape)

    @jax.grad
    def of_message(rows):
        tree = {"h": type(message.tree["h"])(rows, message.tree["h"].used)}
        y, _ = ragged().decode(type(message)(tree, message.lengths, 4), ())
        return jnp.sum(c * jnp.sin(y["h"]))

    @jax.grad
    def through(h):
        message, _ = ragged().encode({**x, "h": h}, (), None)
        return jnp.sum(c * jnp.sin(ragged().decode(message, ())[0]["h"]))

    assert not of_message(message.tree["h"].buffer)[sum(lengths) :].any()
    expected = jnp.where(x["mask"][..., None], c * jnp.cos(H), 0.0)
    np.testing.assert_array_equal(through(H), expected)


def test_it_sends_only_the_tokens():
    codec = chain(ragged(), quantize(4, axis="channel"))
    h = jnp.ones((3, 4, 64))
    message, _ = codec.encode(
        batch([1, 0, 2], h), codec.init(batch([1, 0, 2], h)), Context()
    )
    # Three tokens of half bytes, step and low of each channel, three lengths.
    assert frame.payload_bytes(message) == 3 * 32 + 2 * 64 * 2 + 3 * 2


@pytest.mark.parametrize(
    "x", [{"h": H}, H, {"mask": H}, {"mask": jnp.ones((1, 2**16), bool)}]
)
def test_no_mask_raises(x):
    with pytest.raises(ValueError, match="mask"):
        ragged().encode(x, (), None)


def test_the_mask_may_have_another_name():
    x = {"h": H, "real": jnp.ones((3, 4), bool)}
    codec = ragged("real")
    y, _ = codec.decode(*codec.encode(x, (), None))
    assert codec.name == "ragged(real)" and y["real"].all()
