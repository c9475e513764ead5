"""Rows on disk: a memory map of all, and a redo file of those that changed."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from splitjax.storage.whole import whole

NONE = -1  # the size of a row that was forgotten


class Row(NamedTuple):
    """What is remembered of one example.

    Attributes:
      data: uint8, its arrays one after the other.
      length: tokens.
      visits: since it was last sent whole.
    """

    data: np.ndarray
    length: int
    visits: int


class RowError(RuntimeError):
    """Rows on disk that are not those of the checkpoint."""


class RowFile:
    """Rows by number, at the step of a checkpoint.

    A checkpoint is taken in three parts: `write` puts what changed in a redo file; the
    caller's own checkpoint is the commit; `apply` brings the file up to date, and may
    be interrupted and done again. `open` finishes, or forgets, what a crash left.

    Args:
      folder: of the files.

    Example:
      >>> import tempfile
      >>> file = RowFile(tempfile.mkdtemp())
      >>> file.write(3, {7: Row(np.ones(2, np.uint8), 1, 0)})
      >>> file.open(3)
      >>> file.get(7).data.tolist(), file.get(8)
      ([1, 1], None)
    """

    def __init__(self, folder: str | pathlib.Path):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._data, self._index = self.folder / "rows", self.folder / "index"
        self.step, self._end = 0, 0
        self._places: dict[int, tuple[int, int, int, int]] = {}
        self._map: np.ndarray | None = None
        self._read()

    def __iter__(self) -> Iterator[int]:
        """The numbers of the rows there are."""
        return iter(tuple(self._places))

    def get(self, number: int) -> Row | None:
        """A row, as of the last checkpoint."""
        place = self._places.get(number)
        if place is None:
            return None
        start, size, length, visits = place
        if self._map is None and self._end:
            self._map = np.memmap(self._data, np.uint8, "r", shape=(self._end,))
        data = np.zeros(0, np.uint8) if self._map is None or not size else self._map
        return Row(np.array(data[start : start + size]), length, visits)

    def write(self, step: int, changed: dict[int, Row | None]) -> None:
        """Puts rows in the redo file of a step; None is a row that was forgotten."""
        rows = list(changed.items())
        about = [
            (n, NONE, 0, 0) if row is None else (n, len(row.data), *row[1:])
            for n, row in rows
        ]
        data = [row.data for _, row in rows if row is not None]
        with whole(self._redo(step)) as file:
            np.save(file, np.array(about, np.int64).reshape(-1, 4))
            np.save(file, np.concatenate([np.zeros(0, np.uint8), *data]))

    def apply(self, step: int) -> None:
        """Takes a redo file for good."""
        with self._redo(step).open("rb") as file:
            about, data = np.load(file), np.load(file)
        start = 0
        with open(os.open(self._data, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            for number, size, length, visits in about.tolist():
                known = self._places.pop(number, None)
                if size == NONE:
                    continue
                same = known is not None and known[1] == size
                place = known[0] if known is not None and same else self._end
                self._end = max(self._end, place + size)
                file.seek(place)
                file.write(data[start : start + size].tobytes())
                self._places[number] = place, size, length, visits
                start += size
            file.flush()
            os.fsync(file.fileno())
        self._map, self.step = None, step
        with whole(self._index) as file:
            places = [(n, *place) for n, place in self._places.items()]
            head = json.dumps({"step": step, "end": self._end}).encode()
            file.write(len(head).to_bytes(4, "little") + head)
            np.save(file, np.array(places, np.int64).reshape(-1, 5))
        self._redo(step).unlink()

    def open(self, step: int) -> None:
        """Goes to the rows of a checkpoint.

        Raises:
          RowError: when they are not here.
        """
        self._read()
        for path in self.folder.glob("*.redo"):
            if path != self._redo(step):
                path.unlink()
        if self._redo(step).exists():
            self.apply(step)
        if self.step != step and (self._places or self.step):
            raise RowError(
                f"{self.folder} has the rows of step {self.step}, the checkpoint is of "
                f"step {step}: put both back from one copy, or begin in a new folder"
            )
        self.step = step

    def _read(self) -> None:
        self.step, self._end, self._places, self._map = 0, 0, {}, None
        if not self._index.exists():
            return
        with self._index.open("rb") as file:
            head = json.loads(file.read(int.from_bytes(file.read(4), "little")))
            places = np.load(file).tolist()
        self.step, self._end = head["step"], head["end"]
        self._places = {n: tuple(place) for n, *place in places}

    def _redo(self, step: int) -> pathlib.Path:
        return self.folder / f"{step:08d}.redo"
