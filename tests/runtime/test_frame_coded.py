"""Frames with coded leaves: hostile bytes are refused before memory is taken."""

import hashlib
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from splitjax.core.message import Lossless, Sized
from splitjax.core.tree import spec_of
from splitjax.runtime import frame
from splitjax.runtime.entropy import WrongCoding
from splitjax.runtime.frame import read, write
from splitjax.runtime.schema import FrameError, Schema, WrongSchema
from splitjax.runtime.shapes import nest

AT = {"kind": "up", "run": 7, "slot": 2, "tick": 3, "hop": 1}
NOISE = np.random.default_rng(0).integers(0, 256, 40).astype(np.uint8)
TREE = {
    "codes": Lossless(np.arange(600, dtype=np.uint8).reshape(100, 6) // 64, 3),
    "noise": Lossless(NOISE, 1),
    "rows": Lossless(Sized(np.ones((50, 8), ml_dtypes.bfloat16), np.int32(50)), 1),
    "scale": np.array([1.5, -2.0], np.float32),
}
SCHEMA = Schema.of(TREE)
DATA = write(SCHEMA, TREE, **AT)
COUNTS = frame.HEAD.size  # of codes, noise, and used and coded of rows


def seal(body):
    return body + hashlib.blake2b(body, digest_size=frame.DIGEST_BYTES).digest()


def with_coded(coded: bytes, count: int | None = None, shape=(100, 6)) -> tuple:
    """A frame of one leaf whose coded bytes are given."""
    schema = Schema.of(Lossless(np.zeros(shape, np.uint8), 1))
    head = write(schema, Lossless(np.zeros(shape, np.uint8), 1), **AT)[:COUNTS]
    count = len(coded) if count is None else count
    return schema, seal(head + struct.pack("<I", count) + coded)


def peak_of(schema, data, error):
    tracemalloc.start()
    try:
        with pytest.raises(error):
            read(schema, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_is_written_is_read():
    header, tree = read(SCHEMA, DATA, max_bytes=len(DATA))
    assert header.tick == 3 and spec_of(tree) == spec_of(TREE)
    assert isinstance(tree["codes"], Lossless) and tree["codes"].coder == 3
    np.testing.assert_array_equal(tree["codes"].leaf, TREE["codes"].leaf)
    np.testing.assert_array_equal(tree["noise"].leaf, NOISE)
    np.testing.assert_array_equal(tree["rows"].leaf.buffer, TREE["rows"].leaf.buffer)
    assert len(DATA) < 300 < SCHEMA.max_bytes
    assert len(DATA) - frame.framing_bytes(SCHEMA) == frame.payload_bytes(TREE)
    assert write(SCHEMA, tree, **AT) == DATA


def test_the_level_is_part_of_the_schema():
    copy = Schema.from_bytes(SCHEMA.to_bytes())
    assert copy == SCHEMA and copy.hash == SCHEMA.hash
    plain = Schema.of({name: getattr(a, "leaf", a) for name, a in TREE.items()})
    assert plain.hash != SCHEMA.hash
    with pytest.raises(WrongSchema):
        write(plain, TREE, **AT)
    with pytest.raises(WrongSchema):
        nest(Schema.of({"x": TREE["codes"]}))


@pytest.mark.parametrize("level", ["0", "20", "true", "1.0", '"1"', "1,1"])
def test_a_schema_of_another_level_is_refused(level):
    with pytest.raises(WrongSchema):
        Schema.from_bytes(f'[["h","float32",[1],false,{level}]]'.encode())


BOMB = zstandard.ZstdCompressor(level=19).compress(bytes(10**8))
RIGHT = zstandard.ZstdCompressor(level=1).compress(bytes(600))
UNKNOWN = zstandard.ZstdCompressor(level=1, write_content_size=False)
SKIPPED = struct.pack("<II", 0x184D2A50, 600) + bytes(80)
CLAIM = b"\x28\xb5\x2f\xfd\xe0"  # begins a header, with eight bytes of size
FAULTS = {
    "a bomb": (BOMB[:500], WrongCoding),
    "a claim of 2^62": (CLAIM + struct.pack("<Q", 2**62), WrongCoding),
    "no claim": (UNKNOWN.compress(bytes(600)), WrongCoding),
    "one byte less": (
        zstandard.ZstdCompressor().compress(bytes(599)), WrongCoding
    ),
    "a claim it does not keep": (RIGHT[:-1], WrongCoding),
    "more after it": (RIGHT + b"\0", WrongCoding),
    "two of them": (RIGHT + RIGHT, WrongCoding),
    "to be skipped": (SKIPPED, WrongCoding),
    "noise": (bytes(NOISE), WrongCoding),
    "one byte": (b"\x28", WrongCoding),
    "as long as it grows": (bytes(600), frame.TooLarge),
}  # fmt: skip


@pytest.mark.parametrize("coded, error", FAULTS.values(), ids=FAULTS)
def test_coded_bytes_of_anyone_are_refused(coded, error):
    assert peak_of(*with_coded(coded), error) < 2**16


@pytest.mark.parametrize(
    "count, error",
    [(0, frame.Truncated), (15, frame.TooLarge), (2**32 - 1, frame.TooLarge)],
)
def test_a_count_that_does_not_fit_is_refused(count, error):
    schema, data = with_coded(RIGHT, count)
    assert peak_of(schema, data, error) < 2**16


def test_a_bomb_takes_no_memory():
    """100 MB in 3 kB: zstandard alone would allocate them, whatever its limit."""
    assert len(zstandard.ZstdDecompressor().decompress(BOMB, max_output_size=9)) > 9
    schema, data = with_coded(BOMB, shape=(10**5,))
    assert peak_of(schema, data, WrongCoding) < 2**16


def test_right_bytes_are_taken():
    schema, data = with_coded(RIGHT)
    assert not read(schema, data)[1].leaf.any()


def test_non_finite_values_are_found_in_coded_leaves():
    x = Lossless(np.full(100, np.nan, np.float32), 1)
    data = write(Schema.of(x), x, **AT)
    assert len(data) < 120
    with pytest.raises(frame.NonFinite, match="100 of 100"):
        read(Schema.of(x), data, check_finite=True)


@given(
    st.lists(
        st.tuples(st.integers(4, len(DATA) - frame.DIGEST_BYTES - 1), st.binary(
            min_size=0, max_size=6), st.integers(0, 6)),
        min_size=1, max_size=3,
    )
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_a_changed_frame_is_refused_or_a_message(changes):
    body = DATA[: -frame.DIGEST_BYTES]
    for place, new, old in changes:
        body = body[:place] + new + body[place + old :]
    tracemalloc.start()
    try:
        _, tree = read(SCHEMA, seal(body))
    except FrameError as error:
        assert type(error) is not FrameError
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**17
    assert spec_of(tree) == spec_of(TREE)
