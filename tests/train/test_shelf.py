import numpy as np

from splitjax.train import shelf


def test_arrays_come_back_as_they_were_whatever_their_strides(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITJAX_DATA", str(tmp_path))
    whole = np.arange(12.0).reshape(3, 4)
    made = {"turned": whole.T, "back": whole[:, ::-1][:, :2], "one": np.int64(3)}
    for _ in range(2):
        found = shelf.kept({"about": 1}, lambda: made)
        for name, array in made.items():
            np.testing.assert_array_equal(np.squeeze(found[name]), array)
    assert len(list((tmp_path / "bridges").iterdir())) == 1


def test_a_file_of_texts_is_known_by_its_content(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("a")
    one = shelf.content((str(path), "snli"))
    path.write_text("b")
    assert list(one) == [str(path)] and one != shelf.content((str(path),))
