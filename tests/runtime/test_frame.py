import dataclasses
import hashlib
import json
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitjax.core.message import Sized
from splitjax.core.tree import spec_of
from splitjax.runtime import frame
from splitjax.runtime.frame import read, write
from splitjax.runtime.schema import DTYPES, FrameError, Leaf, Schema, WrongSchema

AT = {"kind": "up", "run": 7, "slot": 2, "tick": 3, "hop": 1}
TREE = {
    "codes": Sized(np.arange(12, dtype=np.uint8).reshape(6, 2), np.int32(6)),
    "step": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "flag": np.array([True, False, True]),
    "none": np.zeros((0, 3), np.float32),
    "scalar": np.float32(4.0).reshape(()),
}
TREE["codes"].buffer[4:] = 0
TREE["codes"] = dataclasses.replace(TREE["codes"], used=np.int32(4))
SCHEMA = Schema.of(TREE)
DATA = write(SCHEMA, TREE, **AT)


def seal(body: bytes) -> bytes:
    """Adds the digest that an attacker can compute as well as we can."""
    return body + hashlib.blake2b(body, digest_size=frame.DIGEST_BYTES).digest()


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    return True


def test_what_is_written_is_read():
    header, tree = read(SCHEMA, DATA, max_bytes=len(DATA))
    assert header == frame.Header(**AT, schema=SCHEMA.hash)
    assert frame.peek(DATA) == header
    assert equal(TREE, tree)
    assert spec_of(tree) == spec_of(TREE)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (2, 3)], ids=str)
def test_every_dtype_and_shape(dtype, shape):
    x = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    data = write(Schema.of(x), x, **AT)
    assert len(data) - x.nbytes == frame.OVERHEAD <= 64
    _, y = read(Schema.of(x), data)
    assert (y.shape, y.dtype) == (x.shape, x.dtype) and equal(x, y)


def test_framing_of_one_sized_leaf_is_64_bytes():
    x = Sized(jnp.ones((8, 3)), jnp.int32(5))
    assert len(write(Schema.of(x), x, **AT)) - 5 * 12 == 64


def test_arrays_of_jax_and_not_contiguous_ones_are_written():
    x = np.arange(6.0, dtype=np.float32).reshape(2, 3).T
    data = write(Schema.of(x), x, **AT)
    assert data == write(Schema.of(x), jnp.asarray(x), **AT)
    assert equal(read(Schema.of(x), data)[1], x)


def test_arrays_are_views_of_the_bytes():
    x = np.ones(1000, np.float32)
    data = write(Schema.of(x), x, **AT)
    _, y = read(Schema.of(x), data)
    assert np.shares_memory(y, np.frombuffer(data, np.uint8))
    assert equal(jnp.asarray(y), x)  # also where they are not aligned


def test_rows_of_no_bytes_keep_their_count():
    x = Sized(np.zeros((4, 0), np.float32), np.int32(3))
    assert read(Schema.of(x), write(Schema.of(x), x, **AT))[1].used == 3


def test_a_schema_crosses_as_text():
    copy = Schema.from_bytes(SCHEMA.to_bytes())
    assert copy == SCHEMA and copy.hash == SCHEMA.hash
    _, flat = read(copy, DATA)
    assert set(flat) == set(TREE) and equal(flat["step"], TREE["step"])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"\xff",
        b"[[]]",
        b'[["h","object",[1],false]]',
        b'[["h","float32",[-1],false]]',
        b'[["h","float32",[true],false]]',
        b'[["h","float32",[1.0],false]]',
        b'[["h","float32",[1e99],false]]',
        b'[["h","float32",[],true]]',
        b'[["h","float32",[1],0]]',
        b'[[1,"float32",[1],false]]',
        b"[" * 100_000,
        json.dumps([["h", "float32", [1] * 33, False]]).encode(),
        b" " * (2**24 + 1),
    ],
    ids=lambda text: repr(text[:40]),
)
def test_a_schema_of_anything_else_is_refused(text):
    with pytest.raises(WrongSchema):
        Schema.from_bytes(text)


def test_a_schema_refuses_foreign_dtypes():
    with pytest.raises(WrongSchema, match="complex64"):
        Schema.of(np.zeros(2, np.complex64))


def test_a_schema_differs_by_path_dtype_shape_and_sized():
    leaf = Leaf("h", "float32", (2, 3))
    others = [
        dataclasses.replace(leaf, path="g"),
        dataclasses.replace(leaf, dtype="int32"),
        dataclasses.replace(leaf, shape=(3, 2)),
        dataclasses.replace(leaf, sized=True),
    ]
    hashes = {Schema((a,)).hash for a in (leaf, *others)}
    assert len(hashes) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"step": np.zeros(3, ml_dtypes.bfloat16)},
        {"step": np.zeros(2, np.float16)},
        {"more": np.zeros(1)},
        {"codes": TREE["codes"].buffer},
        {"codes": dataclasses.replace(TREE["codes"], used=np.int32(7))},
    ],
    ids=str,
)
def test_another_tree_is_not_written(change):
    with pytest.raises(WrongSchema):
        write(SCHEMA, {**TREE, **change}, **AT)


@pytest.mark.parametrize(
    "change",
    [{"kind": ""}, {"kind": "too long a"}, {"kind": "é"}, {"slot": -1}, {"hop": 2**16}],
    ids=str,
)
def test_header_fields_out_of_range_raise(change):
    with pytest.raises(ValueError):
        write(SCHEMA, TREE, **{**AT, **change})


def with_byte(place: int, value: int) -> bytes:
    body = bytearray(DATA[: -frame.DIGEST_BYTES])
    body[place] = value
    return seal(bytes(body))


FIRST = frame.HEAD.size + 4  # after the only count: codes, then flag
CASES = {
    "no bytes": (b"", frame.Truncated),
    "short": (DATA[:50], frame.Truncated),
    "cut": (DATA[:-1], frame.Truncated),
    "longer": (DATA + b"\0", frame.TooLarge),
    "far longer": (DATA + bytes(10**6), frame.TooLarge),
    "magic": (b"x" + DATA[1:], frame.NotAFrame),
    "version": (with_byte(4, 2), frame.WrongVersion),
    "kind": (with_byte(8, 0), frame.NotAFrame),
    "unprintable kind": (with_byte(8, 7), frame.NotAFrame),
    "kind that is no ASCII": (with_byte(8, 200), frame.NotAFrame),
    "schema": (with_byte(frame.HEAD.size - 1, DATA[43] ^ 1), WrongSchema),
    "fewer rows": (with_byte(frame.HEAD.size, 3), frame.TooLarge),
    "more rows": (with_byte(frame.HEAD.size, 5), frame.Truncated),
    "too many rows": (with_byte(frame.HEAD.size, 7), frame.TooLarge),
    "huge rows": (with_byte(frame.HEAD.size + 3, 255), frame.TooLarge),
    "bool of 2": (with_byte(FIRST + 4 * 2, 2), WrongSchema),
    "a bit": (DATA[:-20] + bytes([DATA[-20] ^ 1]) + DATA[-19:], frame.WrongDigest),
    "digest": (DATA[:-1] + bytes([DATA[-1] ^ 1]), frame.WrongDigest),
}


@pytest.mark.parametrize("data, error", CASES.values(), ids=CASES)
def test_each_fault_has_its_error(data, error):
    with pytest.raises(error):
        read(SCHEMA, data)


def test_a_frame_above_the_limit_is_refused():
    with pytest.raises(frame.TooLarge, match="at most 10"):
        read(SCHEMA, DATA, max_bytes=10)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e5m2"])
def test_non_finite_values_are_refused_on_request(dtype):
    x = np.array([1.0, np.nan]).astype(DTYPES[dtype])
    data = write(Schema.of(x), x, **AT)
    assert np.isnan(read(Schema.of(x), data)[1][1].astype(np.float32))
    with pytest.raises(frame.NonFinite, match="1 of 2"):
        read(Schema.of(x), data, check_finite=True)


mutations = st.one_of(
    st.tuples(st.just("set"), st.integers(0, len(DATA) - 1), st.integers(0, 255)),
    st.tuples(st.just("cut"), st.integers(0, len(DATA)), st.integers(0, 40)),
    st.tuples(st.just("insert"), st.integers(0, len(DATA)), st.binary(max_size=40)),
    st.tuples(st.just("repeat"), st.integers(0, len(DATA)), st.integers(0, 40)),
)


def mutate(data: bytes, kind: str, at: int, what) -> bytes:
    if kind == "set":
        return data[:at] + bytes([what]) + data[at + 1 :] if at < len(data) else data
    if kind == "cut":
        return data[:at] + data[at + what :]
    return data[:at] + (what if kind == "insert" else data[at : at + what]) + data[at:]


@given(st.lists(mutations, min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_a_changed_frame_is_refused(changes):
    data = DATA
    for change in changes:
        data = mutate(data, *change)
    if data == DATA:
        return
    with pytest.raises(FrameError):
        read(SCHEMA, data)


@given(st.lists(mutations, min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_a_changed_frame_with_a_right_digest_is_refused_or_a_message(changes):
    body = DATA[: -frame.DIGEST_BYTES]
    for change in changes:
        body = mutate(body, *change)
    tracemalloc.start()
    try:
        header, tree = read(SCHEMA, seal(body))
    except FrameError:
        return
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**16
    assert spec_of(tree) == spec_of(TREE)
    again = write(SCHEMA, tree, **{k: getattr(header, k) for k in AT})
    assert again == seal(body)


def test_a_refused_frame_allocates_nothing():
    x = Sized(np.zeros((10**6, 8), np.float32), np.int32(2))
    schema = Schema.of(x)
    data = bytearray(write(schema, x, **AT))
    data[frame.HEAD.size + 1] = 1
    tracemalloc.start()
    with pytest.raises(frame.Truncated):
        read(schema, bytes(data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**16
