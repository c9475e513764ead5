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
