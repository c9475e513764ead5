"""The data sets that are known by name, and the one door to all data: `load`."""

import csv
import json
import os
import pathlib
import zlib
from collections.abc import Callable

import numpy as np

from splitjax.core.tree import nearest
from splitjax.data import archive
from splitjax.data.files import read_file
from splitjax.data.table import DataError, Table
from splitjax.data.tfds import from_tfds

SPLITS = ("train", "dev", "test")


def load(
    name: str, split: str, *, data_dir: str | None = None, fetch: bool = True, **columns
) -> Table:
    """One split of a data set.

    Args:
      name: a known data set (`BENCHMARKS`, `GLUE`), a file or folder of the user's
        (`read_file`), or "tfds:NAME".
      split: "train", "dev" or "test".
      data_dir: the folder with GLUE's SST-2, CoLA, MRPC and RTE, or of TFDS. GLUE's is
        by default `$SPLITJAX_GLUE`, or `shared/data/glue` beside the checkout.
      fetch: whether to fetch a pinned archive that is missing.
      **columns: of a file, as `read_file` has them.

    Raises:
      DataError: for a name or split that there is not, or bad data.
      ArchiveError: when an archive cannot be had.

    Example:
      >>> load("stbs", "dev")
      Traceback (most recent call last):
      ...
      splitjax.data.table.DataError: no data set 'stbs': did you mean 'stsb'? ...
    """
    if split not in SPLITS:
        raise DataError(f"no split {split!r}: {nearest(split, SPLITS)}")
    if name.startswith("tfds:"):
        return from_tfds(name.removeprefix("tfds:"), split, data_dir=data_dir)
    if name in GLUE:
        return _glue(name, split, data_dir)
    if name in BENCHMARKS:
        return BENCHMARKS[name](archive.folder(name, fetch=fetch), split)
    if pathlib.Path(name).suffix or os.sep in name or pathlib.Path(name).exists():
        return read_file(name, split, **columns)
    known = (*BENCHMARKS, *GLUE)
    raise DataError(
        f"no data set {name!r}: {nearest(name, known)}; or a file (.csv, .tsv, "
        ".jsonl), or tfds:NAME"
    )


def has_folder(name: str) -> bool:
    """Whether `load` reads a data set from a `data_dir`.

    Example:
      >>> has_folder("sst2"), has_folder("tfds:imdb_reviews"), has_folder("stsb")
      (True, True, False)
    """
    return name.startswith("tfds:") or name in GLUE


def _stsb(folder: pathlib.Path, split: str) -> Table:
    rows = _tab(folder / f"{split}.tsv")
    columns = [r[5] for r in rows], [r[6] for r in rows]
    return Table("stsb", split, *columns, np.array([float(r[4]) for r in rows]), 0)


def _rotten_tomatoes(folder: pathlib.Path, split: str) -> Table:
    """Its sentences by the hash of their text: four fifths, a tenth, a tenth."""
    with (folder / "reviews.csv").open(newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["source"] == "rotten_tomatoes"]
    parts = {"train": range(8), "dev": (8,), "test": (9,)}[split]
    kept = [r for r in rows if zlib.crc32(r["text"].encode()) % 10 in parts]
    labels = np.array([int(float(r["label"])) for r in kept])
    return Table("rotten_tomatoes", split, [r["text"] for r in kept], None, labels, 2)


def _snli(folder: pathlib.Path, split: str) -> Table:
    """There is no dev file: the last 5,000 of the training examples are it."""
    lines = (folder / ("test" if split == "test" else "train")).with_suffix(".jsonl")
    with lines.open(encoding="utf-8") as file:
        rows = [r for r in map(json.loads, file) if r["gold_label"] != "-"]
    if split != "test":
        rows = rows[:-5000] if split == "train" else rows[-5000:]
    names = ("entailment", "neutral", "contradiction")
    return Table(
        "snli",
        split,
        [r["sentence1"] for r in rows],
        [r["sentence2"] for r in rows],
        np.array([names.index(r["gold_label"]) for r in rows]),
        3,
    )


def _newsgroups(folder: pathlib.Path, split: str) -> Table:
    """There is no dev file: every tenth training message is it."""
    rows = _tab(folder / ("test.tab" if split == "test" else "train.tab"))[3:]
    names = sorted({r[0] for r in _tab(folder / "train.tab")[3:]})
    if split != "test":
        rows = [r for i, r in enumerate(rows) if (i % 10 == 0) == (split == "dev")]
    labels = np.array([names.index(r[0]) for r in rows])
    return Table("newsgroups20", split, [r[1] for r in rows], None, labels, 20)


def _glue(name: str, split: str, data_dir: str | None) -> Table:
    folder_name, read, head = GLUE[name]
    folder = _glue_folder(data_dir)
    path = folder / folder_name / f"{split}.tsv"
    if not path.exists():
        raise DataError(
            f"there is no {path}: {name} needs GLUE's official files. Give the folder "
            "that holds SST-2, CoLA, MRPC and RTE as --config.data_dir or "
            f"$SPLITJAX_GLUE, or take 'tfds:glue/{name}'"
        )
    rows = _tab(path)[1 if head else 0 :]
    try:
        first, second, labels = zip(*map(read, rows), strict=True)
    except (IndexError, ValueError) as error:
        raise DataError(
            f"{path} is not a labeled file as GLUE has it ({error}); GLUE keeps the "
            "labels of its test files to itself: take 'dev'"
        ) from error
    other = None if second[0] is None else list(second)
    return Table(name, split, list(first), other, np.array(labels), 2)


def _glue_folder(data_dir: str | None) -> pathlib.Path:
    if given := data_dir or os.environ.get("SPLITJAX_GLUE"):
        return pathlib.Path(given)
    for parent in pathlib.Path(__file__).resolve().parents:
        if (parent / "shared" / "data" / "glue").is_dir():
            return parent / "shared" / "data" / "glue"
    return pathlib.Path("glue")


def _tab(path: pathlib.Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        return [line.rstrip("\r\n").split("\t") for line in file if line.strip()]


BENCHMARKS: dict[str, Callable[[pathlib.Path, str], Table]] = {
    "stsb": _stsb,
    "rotten_tomatoes": _rotten_tomatoes,
    "snli": _snli,
    "newsgroups20": _newsgroups,
}
# The folder, how a line is read, and whether the file has a head line.
GLUE: dict[str, tuple[str, Callable, bool]] = {
    "sst2": ("SST-2", lambda r: (r[0], None, int(r[1])), True),
    "cola": ("CoLA", lambda r: (r[3], None, int(r[1])), False),
    "mrpc": ("MRPC", lambda r: (r[3], r[4], int(r[0])), True),
    "rte": ("RTE", lambda r: (r[1], r[2], int(r[3] == "entailment")), True),
}
