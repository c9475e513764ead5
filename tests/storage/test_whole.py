import errno
import os
import stat

import pytest

from splitjax.storage.whole import whole


@pytest.fixture
def path(tmp_path):
    """Of a file that is there already."""
    made = tmp_path / "facts.json"
    made.write_bytes(b"old")
    return made


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_leaves_what_was_there_and_nothing_else(path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), whole(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def test_an_error_within_leaves_what_was_there_and_nothing_else(path):
    with pytest.raises(KeyboardInterrupt), whole(path) as file:
        file.write(b"ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def test_it_is_on_disk_before_it_has_its_name_and_the_name_after(path, monkeypatch):
    seen, fsync = [], os.fsync

    def spied(number):
        seen.append((os.readlink(f"/proc/self/fd/{number}"), path.read_bytes()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", spied)
    with whole(path) as file:
        file.write(b"new")
    part, folder = str(path.with_suffix(".part")), str(path.parent)
    assert seen == [(part, b"old"), (folder, b"new")]


def test_it_is_its_owners_alone_unless_it_is_told(tmp_path):
    made = []
    for kwargs in ({}, {"mode": 0o644}):
        with whole(tmp_path / "x", **kwargs) as file:
            file.write(b"x")
        made.append(stat.S_IMODE((tmp_path / "x").stat().st_mode) & 0o644)
    assert made == [0o600, 0o644]
