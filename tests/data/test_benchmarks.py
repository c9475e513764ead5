import numpy as np
import pytest

from splitjax import data
from splitjax.data import benchmarks
from splitjax.data.table import DataError

LINES = {
    "sst2": ("SST-2", "sentence\tlabel", ["good \t1", "bad\t0"]),
    "cola": ("CoLA", None, ["src\t1\t\tgood ", "src\t0\t*\tbad"]),
    "mrpc": ("MRPC", "Quality\t#1 ID\t#2 ID\tone\ttwo", ["1\t7\t8\tgood \tone"]),
    "rte": ("RTE", "index\tone\ttwo\tlabel", ["0\tgood \tone\tentailment"]),
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stbs", "no data set 'stbs': did you mean 'stsb'"),
        ("sst", "did you mean 'sst2'"),
        ("something else", r"There are: .*; or a file \(.csv"),
        ("mine.csv", "there is no file mine.csv"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, message):
    with pytest.raises(DataError, match=message):
        data.load(name, "train")


def test_an_unknown_split_is_answered_with_the_nearest():
    with pytest.raises(DataError, match="no split 'tran': did you mean 'train'"):
        data.load("stsb", "tran")


@pytest.mark.parametrize("name", LINES)
def test_glue_is_read_from_a_folder(name, tmp_path, monkeypatch):
    folder, head, lines = LINES[name]
    (tmp_path / folder).mkdir()
    text = "\n".join([*([head] if head else []), *lines]) + "\n"
    (tmp_path / folder / "dev.tsv").write_text(text, encoding="utf-8-sig")
    table = data.load(name, "dev", data_dir=str(tmp_path))
    assert table.text_a[0] == "good " and table.classes == 2
    assert table.label.tolist() == [1, 0][: len(lines)]
    assert table.text_b == (["one"] if name in ("mrpc", "rte") else None)
    monkeypatch.setenv("SPLITJAX_GLUE", str(tmp_path))
    assert len(data.load(name, "dev")) == len(lines)


@pytest.mark.parametrize("name", LINES)
def test_without_glue_it_is_told_what_to_do(name, tmp_path):
    with pytest.raises(DataError, match=r"(?s)data_dir.*SPLITJAX_GLUE.*tfds:glue/"):
        data.load(name, "train", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    "text", ["index\tsentence\n0\tno label\n", "sentence\tlabel\n"]
)
def test_a_test_file_without_labels_is_told(text, tmp_path):
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "test.tsv").write_text(text)
    with pytest.raises(DataError, match="test.tsv is not a labeled file.*take 'dev'"):
        data.load("sst2", "test", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "counts", "classes"),
    [
        ("sst2", (67349, 872), 2),
        ("cola", (8551, 1043), 2),
        ("mrpc", (3667, 408), 2),  # 3,668 in some copies
        ("rte", (2490, 277), 2),
    ],
)
def test_glue_has_its_published_counts(name, counts, classes):
    if not benchmarks._glue_folder(None).is_dir():
        pytest.skip("GLUE's files are not there")
    tables = [data.load(name, split) for split in ("train", "dev")]
    assert len(tables[0]) in (counts[0], counts[0] + (name == "mrpc"))
    assert len(tables[1]) == counts[1]
    assert {t.classes for t in tables} == {classes}
    assert all(text.strip() for t in tables for text in t.text_a)


@pytest.mark.parametrize(
    ("name", "counts", "classes", "pairs"),
    [
        pytest.param(*row, marks=pytest.mark.real(row[0]))
        for row in (
            ("stsb", (5749, 1500, 1379), 0, True),
            ("rotten_tomatoes", None, 2, False),
            ("snli", (94890, 5000, 9824), 3, True),
            ("newsgroups20", (None, None, 7528), 20, False),
        )
    ],
)
def test_real_data_is_whole(name, counts, classes, pairs):
    tables = [data.load(name, s, fetch=False) for s in ("train", "dev", "test")]
    for table, count in zip(tables, counts or [None] * 3, strict=True):
        assert count in (None, len(table))
        assert table.classes == classes and (table.text_b is not None) == pairs
    train, dev, test = (len(t) for t in tables)
    if name == "rotten_tomatoes":
        assert train + dev + test == 8530 and 0.78 < train / 8530 < 0.82
    if name == "newsgroups20":
        assert train + dev == 11293 and dev == 1130
    if classes:
        assert all(set(t.label) == set(range(classes)) for t in tables)
    else:
        assert all(t.label.min() == 0 and t.label.max() == 5 for t in tables)
    assert all(np.mean([len(t) for t in one.text_a]) > 20 for one in tables)
