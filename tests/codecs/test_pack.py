import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitjax.codecs.pack import pack_bits, packed_bytes, unpack_bits


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 23])
def test_any_bits_any_count(bits, n):
    codes = np.random.default_rng(n).integers(0, 2**bits, (3, n)).astype(np.uint8)
    packed = pack_bits(jnp.asarray(codes), bits)
    assert packed.shape == (3, -(-n * bits // 8)) == (3, packed_bytes(n, bits))
    np.testing.assert_array_equal(unpack_bits(packed, bits, n), codes)


@given(st.integers(1, 8), st.lists(st.integers(0, 255), max_size=9))
@settings(max_examples=30, deadline=None)
def test_every_bit_survives(bits, numbers):
    codes = jnp.array(numbers, jnp.uint8) & (2**bits - 1)
    packed = pack_bits(codes, bits)
    assert unpack_bits(packed, bits, len(numbers)).tolist() == codes.tolist()


def test_spare_bits_are_zero():
    packed = pack_bits(jnp.full(3, 7, jnp.uint8), 3)
    assert int(np.unpackbits(np.asarray(packed)).sum()) == 9


@pytest.mark.parametrize(
    "array, bits, text",
    [
        (jnp.zeros(2, jnp.uint8), 9, "bits=9: a number may have 1 to 8 bits"),
        (jnp.zeros(2), 4, r"expected uint8 .*, got float32 \(2,\): cast"),
        (jnp.uint8(1), 4, r"got uint8 \(\): cast and reshape first"),
    ],
)
def test_wrong_arguments_are_named(array, bits, text):
    with pytest.raises(ValueError, match=text):
        pack_bits(array, bits)


def test_wrong_count_raises():
    with pytest.raises(ValueError, match="3 numbers of 4 bits fill 2 bytes"):
        unpack_bits(jnp.zeros(3, jnp.uint8), 4, 3)


def test_it_runs_under_jit():
    codes = jnp.arange(8, dtype=jnp.uint8)
    run = jax.jit(lambda q: unpack_bits(pack_bits(q, 3), 3, 8))
    assert run(codes).tolist() == codes.tolist()
