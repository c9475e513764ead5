"""What is special to `lossless`: real bytes, in chains, nothing in a program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import Context, chain, lossless, quantize, ragged, wire_bytes
from splitjax.core.codec import message_spec
from splitjax.core.message import Lossless, Sized
from splitjax.core.tree import spec_of
from splitjax.runtime import frame
from splitjax.runtime.entropy import shrink
from splitjax.runtime.schema import Schema, WrongSchema

AT = {"kind": "up", "run": 1, "slot": 0, "tick": 0, "hop": 0}
RNG = np.random.default_rng(0)


def sent(codec, x):
    """The frame of a message, and what the other end decodes from it."""
    message, _ = codec.encode(x, codec.init(spec_of(x)), Context())
    schema = Schema.of(message_spec(codec, spec_of(x)))
    data = frame.write(schema, message, **AT)
    _, arrived = frame.read(schema, data)
    assert len(data) - frame.framing_bytes(schema) == frame.payload_bytes(message)
    return data, codec.decode(arrived, codec.init(spec_of(x)))[0]


def test_codes_of_normal_data_take_their_entropy():
    x = jnp.asarray(RNG.normal(size=(64, 4096)), jnp.float32)
    plain, y = sent(quantize(8), x)
    coded, z = sent(chain(quantize(8), lossless()), x)
    codes = np.asarray(quantize(8).encode(x, {"nonfinite": 0}, Context())[0].node.codes)
    share = np.bincount(codes.reshape(-1), minlength=256) / codes.size
    entropy = -np.sum(share * np.log2(share, where=share > 0, out=0 * share))
    assert len(coded) * 8 / x.size == pytest.approx(entropy, rel=0.05)
    assert len(coded) < 0.95 * len(plain)
    np.testing.assert_array_equal(y, z)


def test_what_does_not_pay_crosses_as_it_is():
    x = RNG.integers(0, 256, 1000).astype(np.uint8)
    coded, y = sent(lossless(), x)
    schema = Schema.of(x)
    assert len(coded) == len(frame.write(schema, x, **AT)) + 4
    np.testing.assert_array_equal(x, y)
    assert shrink(x, item_bytes=1, level=19) is None
    assert wire_bytes(lossless(), x) == x.nbytes


def test_bytes_are_sorted_by_their_place():
    """Neighbors in bfloat16 share their sign and exponent, not the rest."""
    x = jnp.asarray(RNG.uniform(1, 2, 4096), jnp.bfloat16)
    assert len(sent(lossless(), x)[0]) < 0.75 * x.nbytes


def test_only_used_rows_are_coded_and_counted():
    h = jnp.zeros((4, 8, 16)).at[:2, :5].set(1.5)
    mask = jnp.zeros((4, 8), bool).at[:2, :5].set(True)
    x = {"h": h, "mask": mask}
    codec = chain(ragged(), quantize(4), lossless())
    data, y = sent(codec, x)
    np.testing.assert_array_equal(y["h"], h)
    assert len(data) < len(sent(chain(ragged(), quantize(4)), x)[0])


def test_the_same_message_is_the_same_bytes():
    x = jnp.asarray(RNG.normal(size=(8, 512)), jnp.float32)
    codec = chain(quantize(6), lossless(5))
    assert sent(codec, x)[0] == sent(codec, x)[0]


def test_inside_a_program_it_is_nothing():
    x = jnp.ones((2, 3))
    message = jax.jit(lambda x: lossless(2).encode(x, (), Context())[0])(x)
    assert isinstance(message, Lossless) and message.coder == 2
    text = jax.jit(lambda x: lossless().encode(x, (), None)[0].leaf).lower(x).as_text()
    assert "stablehlo." not in text.replace("stablehlo.return", "")


@pytest.mark.parametrize("coder", [0, 20, -1, True, 1.5, "rows"])
def test_other_coders_are_refused(coder):
    with pytest.raises(ValueError, match=rf"lossless\({coder!r}\): 1 to 19, or 'col"):
        lossless(coder)


def test_it_stands_once_and_last():
    x = jnp.ones((2, 8))
    twice = chain(lossless(), lossless())
    with pytest.raises(ValueError, match="twice"):
        twice.encode(x, twice.init(spec_of(x)), Context())
    first = chain(lossless(), quantize(4))
    with pytest.raises(WrongSchema, match="must be the last"):
        Schema.of(message_spec(first, spec_of(x)))


def test_empty_and_scalar_leaves():
    x = {
        "none": jnp.zeros((0, 3)),
        "one": jnp.float32(2),
        "rows": Sized(jnp.zeros((3, 2)), jnp.int32(0)),
    }
    _, y = sent(lossless(), x)
    assert float(y["one"]) == 2 and y["none"].shape == (0, 3)
    assert int(y["rows"].used) == 0
