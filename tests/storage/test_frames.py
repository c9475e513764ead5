import errno
import os
import stat

import pytest

from splitjax.storage.frames import Frames


def test_frames_outlive_the_process_up_to_the_checkpoint(tmp_path):
    kept = Frames(tmp_path)
    kept.put("a", 3, b"one")
    kept.put("b", 4, b"two")
    again = Frames(tmp_path, step=4)
    assert again.get("a") == b"one" and again.get("b") is None
    assert len(again) == 1 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["", "../a", "a/b", "a_b", "a.frame"])
def test_a_name_cannot_lead_elsewhere(tmp_path, name):
    with pytest.raises(ValueError, match="frame name"):
        Frames(tmp_path).put(name, 0, b"")


def test_a_half_written_frame_is_none(tmp_path):
    (tmp_path / "00000001_a.part").write_bytes(b"ha")
    assert Frames(tmp_path, step=9).get("a") is None


def test_a_frame_that_finds_no_room_is_none_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = Frames(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        kept.put("a", 3, b"one")
    assert kept.get("a") is None and list(tmp_path.iterdir()) == []


def test_only_the_owner_can_read_a_frame(tmp_path):
    """What a journal keeps of it, the journal hides as well."""
    Frames(tmp_path).put("a", 3, b"one")
    [path] = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
