"""Whole numbers in columns: their entropy, and bytes of anyone's."""

import base64
import tracemalloc

import numpy as np
import pytest
import scipy.stats
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from splitjax.core.message import MAX_COLUMNS, Lossless, Sized, has_columns
from splitjax.core.tree import spec_of
from splitjax.runtime import frame
from splitjax.runtime.columns import HEAD, pack_columns, unpack_columns
from splitjax.runtime.entropy import WrongCoding
from splitjax.runtime.schema import Schema, WrongSchema

AT = {"kind": "up", "run": 7, "slot": 2, "tick": 3, "hop": 1}
RNG = np.random.default_rng(0)
SPREAD = 2.0 ** np.linspace(5, -3, 48)
CODES = np.round(RNG.normal(size=(300, 48)) * SPREAD).astype(np.int16)
CODED = pack_columns(CODES)


WRITTEN = (
    "!2SRK00IC2MgRZ+0VuUE{UAW?0RUpd3>47kQd9{gmW<p50001h72=Z!lN`$uDNQWlS`!`tmL)3TS"
    "QVOX4J^I%fBfUk-OWn^0sufn#5JKrJvJ-pSSly5y6aTpNZ3w&3hz5zDNP=WN9>MQOILCpodo(?J)"
    "b>g#~ynKz}Ot$XRk5e`BS^OY$P~caipY|2;bkTs!yRqSK{^0PJ`WLh71=OTiXdJC^!5UPajI!Nbp"
    "t3uG%C-is}{AB|jF(PwZzYPFJBajwwbHhM!$oMIiT_TiNK0R<7*;yM4J4{#Vtz`l|=NPuoCrrcd}"
    "gf8y1wP`ZNdJ19ui(d{vAYJM>E&St|CW(~lgz3hjevh_BW`nW#!MC=FFx1B>WcLa7!(VstZnH3M0"
    "ZPKbmJF*_1BuJ57x+2AinSk7SN!vA!QV)z10000"
)


def information_bytes(table, spread):
    """What the numbers tell, where it is known how they were drawn."""
    edges = (scipy.stats.norm.cdf((table + half) / spread) for half in (0.5, -0.5))
    high, low = edges
    return -float(np.sum(np.log2(high - low))) / 8


def back(coded, like):
    return unpack_columns(coded, like.shape, like.dtype, what="h")


def test_columns_take_their_entropy_and_their_models():
    _, _, models, has_rows = HEAD.unpack_from(CODED)
    assert not has_rows and 48 < models < 3 * 48
    least = information_bytes(CODES, SPREAD)
    assert len(CODED) - HEAD.size - models == pytest.approx(least, rel=0.02)
    zstd = zstandard.ZstdCompressor(level=19).compress(CODES.tobytes())
    assert len(CODED) < 0.8 * len(zstd)
    np.testing.assert_array_equal(back(CODED, CODES), CODES)


def test_rows_have_scales_where_that_pays():
    """As gradients: the tokens of a batch differ by orders of magnitude."""
    rows = 10.0 ** RNG.uniform(-2, 2, (400, 1))
    x = np.round(RNG.normal(size=(400, 64)) * rows).astype(np.int16)
    coded = pack_columns(x)
    _, _, models, has_rows = HEAD.unpack_from(coded)
    assert has_rows
    least = information_bytes(x, rows)
    assert len(coded) - HEAD.size - models == pytest.approx(least, rel=0.03)
    assert len(coded) < 0.8 * len(zstandard.ZstdCompressor(level=19).compress(x.data))
    np.testing.assert_array_equal(back(coded, x), x)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16])
def test_numbers_far_from_their_model_are_coded_too(dtype):
    """Nearly all are at one end of the dtype, and a few at the other."""
    kind = np.iinfo(dtype)
    x = np.full((500, 20), kind.min, dtype)
    x[::97, 3] = kind.max
    np.testing.assert_array_equal(back(pack_columns(x), x), x, strict=True)


def test_one_number_far_off_spoils_nothing():
    coded = len(pack_columns(CODES))
    x = CODES.copy()
    x[0, 0] = 2**15 - 1
    assert len(pack_columns(x)) < 1.05 * coded
    x[:, 1] += 3000
    assert len(pack_columns(x)) < 1.05 * coded
    np.testing.assert_array_equal(back(pack_columns(x), x), x)


def test_many_numbers_are_read_in_little_memory():
    """Of a frame of a hundred bytes, whose numbers are all there is to keep."""
    x = np.zeros((10_000, 400), np.int8)
    x[0, 0] = 1
    coded = pack_columns(x)
    assert len(coded) < 200
    tracemalloc.start()
    try:
        found = back(coded, x)
        assert tracemalloc.get_traced_memory()[1] < x.nbytes + 2**22
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, x)


def test_every_machine_reads_the_same_numbers():
    """Written once: a model that is off in its last bit would read others."""
    table = np.arange(320).reshape(40, 8) * 7919 % 1009 // 31 - 16
    table = table // np.arange(1, 9) * 2 ** (np.arange(40)[:, None] % 7)
    found = back(base64.b85decode(WRITTEN), table.astype(np.int16))
    np.testing.assert_array_equal(found, table)


@given(
    st.sampled_from([np.int8, np.uint8, np.int16, np.uint16]).flatmap(
        lambda dtype: arrays.arrays(
            dtype, arrays.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=9)
        )
    )
)
@settings(max_examples=150, deadline=None)
def test_what_is_packed_is_unpacked_or_crosses_as_it_is(x):
    coded = pack_columns(x)
    if coded is not None:
        np.testing.assert_array_equal(back(coded, x), x, strict=True)
    node = Lossless(x, "columns")
    schema = Schema.of(node)
    data = frame.write(schema, node, **AT)
    np.testing.assert_array_equal(frame.read(schema, data)[1].leaf, x, strict=True)
    assert len(data) <= x.nbytes + frame.framing_bytes(schema)


def test_used_rows_alone_are_coded():
    buffer = np.concatenate([CODES, np.zeros_like(CODES)])
    node = Lossless(Sized(buffer, np.int32(300)), "columns")
    schema = Schema.of(node)
    data = frame.write(schema, node, **AT)
    assert len(data) == len(CODED) + frame.framing_bytes(schema)
    found = frame.read(schema, data)[1]
    assert spec_of(found) == spec_of(node) and found.coder == "columns"
    np.testing.assert_array_equal(found.leaf.buffer, buffer)


def test_noise_and_too_many_columns_cross_as_they_are():
    assert pack_columns(RNG.integers(0, 256, (40, 40)).astype(np.uint8)) is None
    wide = np.zeros((2, MAX_COLUMNS + 1), np.uint8)
    assert pack_columns(wide) is None and not has_columns(wide.dtype, wide.shape)
    assert pack_columns(np.zeros((0, 5), np.uint8)) is None


MODELS = zstandard.ZstdCompressor().compress(bytes(144))
WORDS = CODED[HEAD.size + HEAD.unpack_from(CODED)[2] :]


def made(least=-100, most=100, models=MODELS, words=WORDS, told=None, rows=0):
    told = len(models) if told is None else told
    return HEAD.pack(least, most, told, rows) + models + words


FAULTS = {
    "nothing": (b"", "0 bytes"),
    "a head alone": (HEAD.pack(-3, 3, 0, 0), "claim|read"),
    "a range turned round": (made(5, -5), "numbers from 5 to -5"),
    "a range beyond the dtype": (made(-(2**15) - 1, 5), "numbers from -32769"),
    "an even array with a rest": (made(4, 4), "even array"),
    "models beyond the end": (made(told=2**32 - 1), "4294967295 bytes of models"),
    "models of fewer columns": (
        made(models=zstandard.ZstdCompressor().compress(bytes(142))), "142 bytes; 144"
    ),
    "models of a bomb": (
        made(models=zstandard.ZstdCompressor().compress(bytes(10**8))[:9000]), "144 are"
    ),
    "scales of rows that are not there": (made(rows=1), "144 bytes; 444"),
    "two scales a row": (made(rows=2), "2 scales"),
    "a deviation of 80": (
        made(models=zstandard.ZstdCompressor().compress(b"\x50" + bytes(143))),
        "deviation",
    ),
    "half a word": (made(words=WORDS + b"\1\1"), "whole words"),
    "a last word of zero": (made(words=WORDS + bytes(4)), "last word"),
    "words too many": (made(words=WORDS + b"\1" * 4000), "more words"),
}  # fmt: skip


@pytest.mark.parametrize("coded, why", FAULTS.values(), ids=FAULTS)
def test_coded_columns_of_anyone_are_refused(coded, why):
    tracemalloc.start()
    try:
        with pytest.raises(WrongCoding, match=why):
            back(coded, CODES)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@given(st.lists(st.tuples(st.integers(0, len(CODED) - 1), st.integers(0, 255)),
                min_size=1, max_size=4))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_refused_or_numbers(changes):
    coded = bytearray(CODED)
    for place, value in changes:
        coded[place] = value
    try:
        found = back(bytes(coded), CODES)
    except WrongCoding:
        return
    assert found.shape == CODES.shape and found.dtype == CODES.dtype


def test_a_schema_codes_columns_of_short_whole_numbers_alone():
    text = '[["h","{}",{},false,"columns"]]'
    assert Schema.from_bytes(text.format("int16", "[4,3]").encode()).leaves[0].coder
    for dtype, shape in (("int32", "[4,3]"), ("float16", "[4,3]"), ("int16", "[4]")):
        with pytest.raises(WrongSchema):
            Schema.from_bytes(text.format(dtype, shape).encode())
    with pytest.raises(WrongSchema):
        Schema.from_bytes(
            text.replace("columns", "rows").format("int8", "[4,3]").encode()
        )
