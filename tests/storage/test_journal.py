import errno
import os
import stat
import subprocess
import sys
import threading
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitjax.storage import journal as module
from splitjax.storage import record
from splitjax.storage.journal import FILE, Journal, JournalError, JournalFull
from splitjax.storage.record import HEAD, OVERHEAD_BYTES

RECORDS = [(1, b"one"), (0, b""), (255, bytes(range(256)) * 3), (7, b"last")]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def filled(path):
    """The path of a journal that holds RECORDS."""
    with Journal(path) as journal:
        for kind, data in RECORDS:
            journal.append(kind, data)
    return path


def contents(path):
    with Journal(path) as journal:
        return [(kind, data) for _, kind, data in journal]


def test_what_is_appended_is_read(path):
    with Journal(path) as journal:
        assert list(journal) == [] and journal.size_bytes == FILE.size
        offsets = [journal.append(kind, data) for kind, data in RECORDS]
        assert [journal.read(offset) for offset in offsets] == RECORDS
        rows = [(o, *r) for o, r in zip(offsets, RECORDS, strict=True)]
        assert list(journal) == rows
    with Journal(path) as journal:
        assert list(journal) == rows and journal.torn_bytes == 0
        assert journal.size_bytes == path.stat().st_size
        journal.append(3, b"more")
    assert contents(path) == [*RECORDS, (3, b"more")]


def test_a_payload_comes_in_parts_and_as_any_bytes(path):
    with Journal(path) as journal:
        parts = [b"a", bytearray(b"b"), memoryview(b"xcx")[1:2], b""]
        offsets = [
            journal.append(1, parts),
            journal.append(1, memoryview(b"abc")),
            journal.append(1, tuple(parts), sync=False),
        ]
        assert {journal.read(offset) for offset in offsets} == {(1, b"abc")}
        assert journal.append(1, []) == journal.size_bytes - OVERHEAD_BYTES


@pytest.mark.parametrize("data", ["text", ["text"], [1]], ids=str)
def test_what_is_no_bytes_is_refused(path, data):
    with Journal(path) as journal:
        with pytest.raises(TypeError):
            journal.append(1, data)
        assert journal.size_bytes == FILE.size


def test_a_kind_and_a_length_out_of_range_are_refused(path, monkeypatch):
    with Journal(path) as journal:
        for kind in (-1, 256):
            with pytest.raises(ValueError, match="expected 0 to 255"):
                journal.append(kind, b"")
        monkeypatch.setattr(record, "MAX_RECORD_BYTES", 3)
        with pytest.raises(ValueError, match="4 bytes; at most 3"):
            journal.append(0, [b"ab", b"cd"])
        assert list(journal) == []


def test_only_the_owner_can_read_the_file(filled):
    assert stat.S_IMODE(filled.stat().st_mode) == 0o600


def test_a_torn_tail_is_cut_at_every_byte(filled):
    whole = filled.read_bytes()
    start = len(whole) - OVERHEAD_BYTES - len(RECORDS[-1][1])
    for end in range(start, len(whole)):
        filled.write_bytes(whole[:end])
        with Journal(filled) as journal:
            assert journal.torn_bytes == end - start
            assert [(kind, data) for _, kind, data in journal] == RECORDS[:-1]
            assert filled.stat().st_size == journal.size_bytes == start
            assert journal.append(9, b"again") == start
        assert contents(filled) == [*RECORDS[:-1], (9, b"again")]


def test_a_last_record_with_a_wrong_byte_is_torn_too(filled):
    # The blocks of one record reach a disk in any order.
    whole = filled.read_bytes()
    start = len(whole) - OVERHEAD_BYTES - len(RECORDS[-1][1])
    for place in range(start, len(whole)):
        data = bytearray(whole)
        data[place] ^= 1
        filled.write_bytes(data)
        assert contents(filled) == RECORDS[:-1]


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"spJL\1", b"\xff" * 100], ids=len)
def test_a_tail_that_is_no_record_is_cut(filled, tail):
    with filled.open("ab") as file:
        file.write(tail)
    with Journal(filled) as journal:
        assert journal.torn_bytes == len(tail)
    assert contents(filled) == RECORDS


def test_a_wrong_byte_before_a_whole_record_is_damage(filled):
    whole = filled.read_bytes()
    last = len(whole) - OVERHEAD_BYTES - len(RECORDS[-1][1])
    for place in range(FILE.size, last, 3):
        data = bytearray(whole)
        data[place] ^= 0x10
        filled.write_bytes(data)
        with pytest.raises(JournalError, match=r"damaged.* from byte \d+.*checkpoint"):
            Journal(filled)
        assert filled.read_bytes() == data


@pytest.mark.parametrize("gap", range(-4, 4))
def test_a_whole_record_is_found_wherever_it_lies(path, gap, monkeypatch):
    monkeypatch.setattr(record, "CHUNK_BYTES", 64)
    with Journal(path) as journal:
        first = journal.append(1, bytes(300 - FILE.size - 2 * OVERHEAD_BYTES + gap))
        second = journal.append(2, b"whole")
    with path.open("r+b") as file:
        file.seek(first)
        file.write(b"\0" * OVERHEAD_BYTES)
    with pytest.raises(JournalError, match=f"from byte {second}"):
        Journal(path)


def test_a_payload_that_looks_like_a_record_is_none(path, filled):
    # Someone who may choose a payload must not be able to stop the next start.
    other = filled.parent / "other"
    with Journal(other) as journal:
        journal.append(1, filled.read_bytes()[FILE.size :])
    data = other.read_bytes()
    other.write_bytes(data[:-1])
    assert contents(other) == []


def test_a_record_belongs_to_its_offset(filled):
    with Journal(filled) as journal:
        (first, *_), (second, *_) = list(journal)[:2]
    data = filled.read_bytes()
    filled.write_bytes(data[:first] + data[second:])
    assert contents(filled) == []


@pytest.mark.parametrize("length", [2**30 + 1, 2**32 - 1, 5000])
def test_a_huge_length_is_refused_before_memory_is_taken(filled, length):
    whole = filled.read_bytes()
    mark = whole[FILE.size :][:4]
    filled.write_bytes(whole + HEAD.pack(mark, length, 1) + bytes(16 + 4000))
    os.truncate(filled, 2**33)  # a hole: the length fits in the file
    if length < 2**30:
        os.truncate(filled, len(whole) + OVERHEAD_BYTES + 4000)
    records = record.Records(whole[8:24])
    with filled.open("rb") as file:
        tracemalloc.start()
        end = os.fstat(file.fileno()).st_size
        assert records.load(file.fileno(), len(whole), end) is None
        assert tracemalloc.get_traced_memory()[1] < 10_000
        tracemalloc.stop()


@pytest.mark.parametrize("size", range(FILE.size))
@pytest.mark.parametrize("zeros", [False, True])
def test_a_file_that_was_not_made_to_its_end_is_made_anew(filled, size, zeros):
    head = filled.read_bytes()[: FILE.size]
    filled.write_bytes(bytes(size + 1) if zeros else head[:size])
    assert contents(filled) == []
    with Journal(filled) as journal:
        journal.append(1, b"new")
    assert contents(filled) == [(1, b"new")]


@pytest.mark.parametrize("data", [b"{}", b"#!/bin/sh\n" * 9, bytes(100)], ids=len)
def test_another_file_is_refused_and_left_alone(path, data):
    path.write_bytes(data)
    with pytest.raises(JournalError, match="is no journal.*Move it away"):
        Journal(path)
    assert path.read_bytes() == data


def test_another_version_is_refused(filled, monkeypatch):
    monkeypatch.setattr(module, "VERSION", 2)
    with pytest.raises(JournalError, match="version 1, this program reads 2"):
        Journal(filled)
    assert filled.stat().st_size > FILE.size


def test_no_record_begins_elsewhere(filled):
    with Journal(filled) as journal:
        offsets = {offset for offset, _, _ in journal}
        for offset in {*range(-30, journal.size_bytes + 40)} - offsets:
            with pytest.raises(JournalError, match="no whole record begins at byte"):
                journal.read(offset)


def test_a_second_opener_is_refused(filled):
    code = "import sys; from splitjax.storage.journal import Journal; "
    code += "Journal(sys.argv[1]).close()"
    run = [sys.executable, "-c", code, str(filled)]
    with Journal(filled) as journal:
        with pytest.raises(JournalError, match="open already.*another folder"):
            Journal(filled)
        other = subprocess.run(run, capture_output=True, text=True)
        assert "JournalError" in other.stderr and "open already" in other.stderr
        journal.append(1, b"the first goes on")
    assert subprocess.run(run).returncode == 0


def test_a_closed_journal_says_so(filled):
    journal = Journal(filled)
    journal.close()
    journal.close()
    for use in (lambda: journal.append(1, b""), journal.sync, lambda: journal.read(24)):
        with pytest.raises(JournalError, match="is closed"):
            use()
    with pytest.raises(JournalError, match="is closed"):
        list(journal)


LIMITED = """
import resource, sys
from splitjax.storage.journal import Journal, JournalFull
path, limit = sys.argv[1], int(sys.argv[2])
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
with Journal(path) as journal:
    journal.append(1, b"before")
    size = journal.size_bytes
    try:
        journal.append(2, bytes(5000))
    except JournalFull as error:
        print(error)
    assert journal.size_bytes == size
    journal.append(3, b"small")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    journal.append(4, bytes(5000))
"""


def test_a_file_that_may_not_grow_is_full_and_goes_on(path):
    run = [sys.executable, "-c", LIMITED, str(path), "4096"]
    out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert "no room for a record" in out and "File too large" in out
    assert contents(path) == [(1, b"before"), (3, b"small"), (4, bytes(5000))]


def test_no_room_to_make_one(path):
    run = [sys.executable, "-c", LIMITED, str(path), "10"]
    other = subprocess.run(run, capture_output=True, text=True)
    assert "JournalFull" in other.stderr and "cannot be opened" in other.stderr
    assert contents(path) == []


class Disk:
    """Stands for `os` in a journal: the calls that it is told to fail, fail."""

    def __init__(self, monkeypatch):
        self.room_bytes, self.failing = None, {}
        self.calls = []
        for name in ("pwrite", "fsync", "ftruncate"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name, inner):
        def call(file, *args):
            self.calls.append(name)
            if name in self.failing:
                raise self.failing[name]
            if name == "pwrite" and self.room_bytes is not None:
                if not self.room_bytes:
                    raise OSError(errno.ENOSPC, "No space left on device")
                data, offset = args
                count = inner(file, data[: self.room_bytes], offset)
                self.room_bytes -= count
                return count
            return inner(file, *args)

        return call


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def test_a_disk_that_fills_at_any_byte_changes_nothing(filled, disk):
    size = filled.stat().st_size
    with Journal(filled) as journal:
        for room in range(OVERHEAD_BYTES + 8):
            disk.room_bytes = room
            with pytest.raises(JournalFull, match="as it was before"):
                journal.append(5, [b"four", b"more", b"!"])
            assert filled.stat().st_size == journal.size_bytes == size
        disk.room_bytes = None
        assert journal.append(5, b"now") == size
    assert contents(filled) == [*RECORDS, (5, b"now")]


def test_short_writes_go_on_where_they_stopped(path, disk, monkeypatch):
    inner = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda f, data, at: inner(f, data[:3], at))
    with Journal(path) as journal:
        journal.append(1, b"in threes")
    assert contents(path) == [(1, b"in threes")]


def test_a_write_of_nothing_is_a_full_disk(filled, monkeypatch):
    with Journal(filled) as journal:
        monkeypatch.setattr(os, "pwrite", lambda *_: 0)
        with pytest.raises(JournalFull):
            journal.append(1, b"")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_at_the_sync(filled, disk, code):
    size = filled.stat().st_size
    with Journal(filled) as journal:
        disk.failing["fsync"] = OSError(code, "full")
        with pytest.raises(JournalFull):
            journal.append(5, b"late")
        assert filled.stat().st_size == journal.size_bytes == size
        disk.failing.clear()
        journal.append(5, b"now")
    assert contents(filled) == [*RECORDS, (5, b"now")]


def test_a_full_sync_that_earlier_records_waited_for(filled, disk):
    with Journal(filled) as journal:
        journal.append(5, b"waits", sync=False)
        disk.failing["fsync"] = OSError(errno.ENOSPC, "full")
        with pytest.raises(JournalError, match="not known") as found:
            journal.append(6, b"late")
        assert not isinstance(found.value, JournalFull)
        disk.failing.clear()
        with pytest.raises(JournalError, match="takes no more"):
            journal.append(6, b"late")
    assert contents(filled) == [*RECORDS, (5, b"waits")]


@pytest.mark.parametrize("call", ["fsync", "pwrite"])
def test_a_disk_that_fails_ends_the_journal(filled, disk, call):
    with Journal(filled) as journal:
        disk.failing[call] = OSError(errno.EIO, "Input/output error")
        with pytest.raises(JournalError, match="takes no more.*open it again"):
            journal.append(5, b"x")
        disk.failing.clear()
        with pytest.raises(JournalError, match="takes no more"):
            journal.append(5, b"x")
        with pytest.raises(JournalError, match="takes no more"):
            journal.sync()
        assert [(kind, data) for _, kind, data in journal] == RECORDS
    assert contents(filled) == RECORDS


def test_a_full_disk_that_cannot_be_cut_back_ends_the_journal(filled, disk):
    with Journal(filled) as journal:
        disk.room_bytes = 3
        disk.failing["ftruncate"] = OSError(errno.EIO, "Input/output error")
        with pytest.raises(JournalError, match="takes no more"):
            journal.append(5, b"x")
        disk.failing.clear()
    assert contents(filled) == RECORDS


def test_an_interrupt_takes_the_record_back(filled, disk):
    with Journal(filled) as journal:
        journal.append(5, b"waits", sync=False)
        inner, disk.failing["fsync"] = dict(disk.failing), KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            journal.append(6, b"x")
        disk.failing = inner
        journal.append(7, b"y")
    assert contents(filled) == [*RECORDS, (5, b"waits"), (7, b"y")]


def test_sync_is_called_when_asked(filled, disk):
    with Journal(filled) as journal:
        disk.calls.clear()
        journal.append(1, b"a", sync=False)
        assert "fsync" not in disk.calls
        journal.sync()
        assert disk.calls.count("fsync") == 1
        journal.append(1, b"b")
        assert disk.calls.count("fsync") == 2
        disk.failing["fsync"] = OSError(errno.EIO, "Input/output error")
        with pytest.raises(JournalError, match="takes no more"):
            journal.sync()


def test_the_folder_is_made_and_synced(tmp_path, disk):
    with Journal(tmp_path / "a" / "b" / "journal"):
        assert disk.calls.count("fsync") == 2


def test_threads_may_append_at_once(path):
    with Journal(path) as journal:

        def work(kind):
            for number in range(50):
                journal.append(kind, b"%d" % number * kind, sync=False)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for kind in range(1, 5):
        mine = [data for k, data in contents(path) if k == kind]
        assert mine == [b"%d" % number * kind for number in range(50)]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_appends_and_crashes(data, tmp_path_factory):
    """After each crash the journal holds the synced records, and goes on from there."""
    path = tmp_path_factory.mktemp("journal") / "journal"
    expected: list = []
    for _ in range(data.draw(st.integers(1, 4))):
        with Journal(path) as journal:
            assert [(kind, body) for _, kind, body in journal] == expected
            ends = [journal.size_bytes]
            rows = st.tuples(st.integers(0, 255), st.binary(max_size=40))
            added = data.draw(st.lists(rows, max_size=5))
            for kind, body in added:
                journal.append(kind, body, sync=data.draw(st.booleans()))
                ends.append(journal.size_bytes)
        cut = data.draw(st.integers(ends[0], ends[-1]))
        os.truncate(path, cut)
        expected += added[: sum(end <= cut for end in ends) - 1]
    assert contents(path) == expected
