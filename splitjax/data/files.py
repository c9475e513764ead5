"""A user's own CSV, TSV or JSONL file as a table."""

import csv
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from splitjax.core.tree import nearest
from splitjax.data.table import DataError, Table


def read_file(
    path: str | pathlib.Path,
    split: str = "train",
    *,
    text: str = "text",
    text_b: str | None = None,
    label: str = "label",
    classes: int | None = None,
) -> Table:
    """Reads a table from a file with named columns.

    Args:
      path: a .csv, .tsv or .jsonl file, or a folder with `SPLIT.csv` and so on.
      split: which file of a folder. Of a single file every tenth row is "dev", the
        others are "train", and there is no "test".
      text: the column of the texts.
      text_b: the column of the second texts; by default "text_b" where there is one.
      label: the column of the labels.
      classes: how many; 0 for a regression; by default whole numbers are classes, as
        many as the largest tells.

    Raises:
      DataError: for a missing file, split or column, an unknown ending, no rows, a row
        without text, or a label that is no number.

    Example:
      >>> import tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "mine.csv")
      >>> _ = path.write_text("text,label\\nfine,1\\ngood,1\\nbad,0\\n")
      >>> read_file(path).classes
      2
    """
    alone = not pathlib.Path(path).is_dir()
    path = _file(pathlib.Path(path), split)
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"{path} has no rows")
    columns = tuple(str(name) for name in rows[0])
    if text_b is None and "text_b" in columns:
        text_b = "text_b"
    for name in (text, label, *([text_b] if text_b else [])):
        if name not in columns:
            raise DataError(f"{path} has no column {name!r}: {nearest(name, columns)}")
    try:
        labels = np.array([float(row[label]) for row in rows])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: a label is no number ({error}); write classes as 0, 1, 2..."
        ) from error
    if alone and split == "test":
        raise DataError(f"{path} is one file: its splits are 'train' and 'dev'")
    if classes is None:
        whole = np.isfinite(labels).all() and (labels == np.round(labels)).all()
        classes = int(labels.max()) + 1 if whole and labels.min() >= 0 else 0
    for name in (text, *([text_b] if text_b else [])):
        lacking = [i for i, row in enumerate(rows) if row.get(name) is None]
        if lacking:
            raise DataError(f"{path}: row {lacking[0]} has no {name!r}")
    second = [str(row[text_b]) for row in rows] if text_b else None
    first = [str(row[text]) for row in rows]
    table = Table(path.stem, split, first, second, labels, classes)
    tenth = np.arange(len(rows)) % 10 == 0
    return table.pick(tenth if split == "dev" else ~tenth) if alone else table


def read_texts(path: str | pathlib.Path) -> tuple[list[str], list[str] | None]:
    """Reads texts to predict for: one a line, or two with a tab between.

    Raises:
      DataError: for a missing or empty file, or lines of both kinds.

    Example:
      >>> import tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "texts.tsv")
      >>> _ = path.write_text("a cat\\ta dog\\n")
      >>> read_texts(path)
      (['a cat'], ['a dog'])
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    lines = [line.split("\t") for line in path.read_text("utf-8").splitlines() if line]
    widths = {len(line) for line in lines}
    if widths not in ({1}, {2}):
        raise DataError(
            f"{path}: expected one text in every line, or two with a tab between; "
            f"found lines of {sorted(widths)} texts"
        )
    second = [line[1] for line in lines] if widths == {2} else None
    return [line[0] for line in lines], second


def _file(path: pathlib.Path, split: str) -> pathlib.Path:
    if path.is_dir():
        found = [path / f"{split}{end}" for end in (".csv", ".tsv", ".jsonl")]
        path = next((p for p in found if p.exists()), found[0])
    if not path.exists():
        raise DataError(f"there is no file {path}")
    if path.suffix not in (".csv", ".tsv", ".jsonl"):
        raise DataError(f"{path}: expected a .csv, .tsv or .jsonl file")
    return path


def _rows(path: pathlib.Path) -> Iterator[dict]:
    # "-sig": spreadsheets open a file with a byte order mark.
    with path.open(newline="", encoding="utf-8-sig") as file:
        if path.suffix == ".jsonl":
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path}, line {number}: {error}") from error
                if not isinstance(row, dict):
                    raise DataError(f"{path}, line {number}: expected an object")
                yield row
        else:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            yield from csv.DictReader(file, delimiter=delimiter)
