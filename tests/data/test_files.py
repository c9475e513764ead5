import json

import pytest

from splitjax.data.files import read_file, read_texts
from splitjax.data.table import DataError

ROWS = [("a, good one", 1), ('the "bad" one', 0), ("ünïcode", 1)]


def write(path, rows=ROWS, head=("text", "label")):
    """A file of the kind that its ending says."""
    rows = [dict(zip(head, row, strict=True)) for row in rows]
    if path.suffix == ".jsonl":
        lines = [json.dumps(row) for row in rows]
    else:
        cut = "\t" if path.suffix == ".tsv" else ","

        def cell(value):
            return '"' + str(value).replace('"', '""') + '"'

        lines = [cut.join(head)]
        lines += [cut.join(cell(row[name]) for name in head) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder of train.csv and dev.csv."""
    write(tmp_path / "train.csv")
    write(tmp_path / "dev.csv", ROWS[:1])
    return tmp_path


@pytest.mark.parametrize("end", ["csv", "tsv", "jsonl"])
def test_each_kind_of_file_gives_the_same_table(end, tmp_path):
    write(tmp_path / f"train.{end}")
    table = read_file(tmp_path, "train")
    assert table.text_a == [text for text, _ in ROWS] and table.text_b is None
    assert table.label.tolist() == [1, 0, 1] and table.classes == 2


def test_every_tenth_row_of_a_single_file_is_held_out(tmp_path):
    path = write(tmp_path / "mine.csv", [(f"row {i}", i % 3) for i in range(25)])
    train, dev = read_file(path, "train"), read_file(path, "dev")
    assert dev.text_a == ["row 0", "row 10", "row 20"]
    assert len(train) == 22 and not set(train.text_a) & set(dev.text_a)
    assert train.classes == dev.classes == 3
    with pytest.raises(DataError, match="its splits are 'train' and 'dev'"):
        read_file(path, "test")


def test_a_folder_has_a_file_for_each_split(folder):
    assert len(read_file(folder, "train")) == 3 and len(read_file(folder, "dev")) == 1
    with pytest.raises(DataError, match="there is no file .*test.csv"):
        read_file(folder, "test")


def test_a_missing_column_is_answered_with_the_nearest(tmp_path):
    path = write(tmp_path / "a.csv", head=("texts", "label"))
    with pytest.raises(DataError, match="no column 'text': did you mean 'texts'"):
        read_file(path)
    with pytest.raises(DataError, match="no column 'lable': did you mean 'label'"):
        read_file(path, text="texts", label="lable")
    assert read_file(path, text="texts").text_a == [text for text, _ in ROWS[1:]]


def test_second_texts_and_values(tmp_path):
    rows = [("a", "b", 0.5), ("c", "d", 2), ("e", "f", 1)]
    path = write(tmp_path / "a.csv", rows, ("text", "text_b", "label"))
    table = read_file(path)
    assert table.text_b == ["d", "f"] and table.classes == 0
    assert read_file(path, text="text_b", text_b="text").text_b == ["c", "e"]


def test_classes_may_be_given(tmp_path):
    path = write(tmp_path / "a.csv", [("a", 1), ("b", 0), ("c", 2)])
    assert read_file(path, classes=0).label.tolist() == [0.0, 2.0]
    with pytest.raises(DataError, match="row 2 has the label 2.0, not a class"):
        read_file(path, classes=2)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text,label\n", "has no rows"),
        ("a.csv", "text,label\na,good\n", "a label is no number.*0, 1, 2"),
        ("a.csv", "text,label\na,1\nb\n", "a label is no number"),
        ("a.csv", "label,text\n1,a\n0\n", "row 1 has no 'text'"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"label": 1}', "row 1 has no 'text'"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text"', "a.jsonl, line 2"),
        ("a.jsonl", '["a", 1]\n', "line 1: expected an object"),
        ("a.txt", "a", "expected a .csv, .tsv or .jsonl file"),
        ("a.csv", None, "there is no file"),
    ],
)
def test_a_bad_file_is_told(name, text, message, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_file(tmp_path / name)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,1\nb,0\n", encoding="utf-8-sig")
    assert read_file(path).text_a == ["b"]


def test_texts_to_predict_for(tmp_path):
    path = tmp_path / "texts"
    path.write_text("one\n\ntwo\n", encoding="utf-8")
    assert read_texts(path) == (["one", "two"], None)
    path.write_text("one\tother\nüne\tzwei\n", encoding="utf-8")
    assert read_texts(path) == (["one", "üne"], ["other", "zwei"])
    path.write_text("one\nthis\tthat\n")
    with pytest.raises(DataError, match=r"lines of \[1, 2\] texts"):
        read_texts(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="expected one text in every line"):
        read_texts(path)
    with pytest.raises(DataError, match="there is no file"):
        read_texts(tmp_path / "gone")
