"""Memories of examples, one row each, kept by a driver outside of jit."""

import math
import pathlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from splitjax.core.memory import Memory
from splitjax.storage.row_file import Row, RowFile


class BadIds(ValueError):
    """Ids that cannot be looked up."""


class Rows:
    """What one end of a codec remembers of every example.

    An example of n tokens has a row of n tokens, whatever its batches are padded to.
    Rows since the last checkpoint lie over those of it: `restore` goes back to them.

    Args:
      count: of examples; ids are below it. None: any id.
      folder: where checkpoints of the rows lie; None keeps them in memory alone.
      step: of the checkpoint to begin at; None: `restore` is called first.
      mapped: whether rows of the last checkpoint stay on disk and are read by a memory
        map when they are needed; otherwise all are in memory.

    Example:
      >>> rows = Rows(10)
      >>> like = Memory((np.zeros((2, 3), np.float32),), *np.zeros((3, 2), np.int32),
      ...     tokens=(False,))
      >>> memory = rows.gather(np.array([7, -1]), like)
      >>> memory.seen.tolist()
      [False, False]
      >>> memory.rows[0][0], memory.seen[0] = 1.0, True
      >>> rows.put(np.array([7, -1]), memory)
      []
      >>> rows.gather(np.array([8, 7]), like).rows[0].tolist(), rows.nbytes
      ([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], 12)
    """

    def __init__(
        self,
        count: int | None = None,
        folder: str | pathlib.Path | None = None,
        *,
        step: int | None = None,
        mapped: bool = False,
    ):
        if mapped and folder is None:
            raise ValueError("rows that are mapped need a folder")
        self.count = count
        self._file = None if folder is None else RowFile(folder)
        self._mapped = mapped
        self._base: dict[
            int, Row
        ] = {}  # of the checkpoint; if mapped, those read ahead
        self._new: dict[int, Row | None] = {}  # since then; None was forgotten
        self._out: set[int] = set()
        self._reader: threading.Thread | None = None
        if step is not None:
            self.restore(step)

    def __iter__(self) -> Iterator[int]:
        """The ids that are remembered, in order."""
        old = self._base if self._file is None or not self._mapped else self._file
        gone = {n for n, row in self._new.items() if row is None}
        return iter(sorted({*old, *self._new} - gone))

    @property
    def nbytes(self) -> int:
        """Bytes of all that is remembered."""
        return sum(len(self[number].data) for number in self)

    def __getitem__(self, number: int) -> Row:
        """What is remembered of an example."""
        row = self._get(number)
        if row is None:
            raise KeyError(number)
        return row

    def check(
        self, ids: Any, *, busy: Iterable[int] = (), like: Memory | None = None
    ) -> np.ndarray:
        """Ids as int64, where they can be looked up; -1 is nobody's.

        Args:
          ids: int `[B]`, from anyone.
          busy: those that another batch under way has.
          like: see `gather`.

        Raises:
          BadIds: for ids out of range, twice, or busy.
          ValueError: when a row has another shape than `like`.
        """
        ids = np.asarray(ids).astype(np.int64)
        real = ids[ids >= 0]
        top = math.inf if self.count is None else self.count
        bad = [int(n) for n in ids if n < -1 or n >= top]
        if bad:
            raise BadIds(f"ids {bad[:5]} are not from 0 to {top - 1} (or -1: nobody's)")
        numbers, counts = np.unique(real, return_counts=True)
        if (counts > 1).any():
            twice = numbers[counts > 1][:5].tolist()
            raise BadIds(
                f"ids {twice} are in one batch twice: which row would be kept?"
            )
        both = sorted(set(real.tolist()) & set(busy))
        if both:
            raise BadIds(
                f"ids {both[:5]} are in two batches of one step: one must wait"
            )
        if like is None or any(like.tokens):
            return ids  # another count of tokens is another text, and sent whole
        for number in real.tolist():
            row = self._get(number)
            if row is not None and not _fits(row, like):
                shape = [list(a.shape[1:]) for a in like.rows]
                raise ValueError(
                    f"example {number} was remembered with {len(row.data)} bytes, and "
                    f"a row of this batch has shape {shape}: texts of many lengths "
                    "need ragged() before the codec"
                )
        return ids

    def gather(self, ids: Any, like: Memory) -> Memory:
        """The memory of a batch; `put` it back before the same ids are asked again.

        Args:
          ids: int `[B]`; -1 is nobody's.
          like: shapes and dtypes, as `Codec.init` gives for the batch.

        Raises:
          BadIds, ValueError: see `check`.
        """
        ids = self.check(ids, busy=self._out, like=like)
        rows = tuple(np.zeros(a.shape, a.dtype) for a in like.rows)
        lengths, visits = np.zeros((2, len(ids)), np.int32)
        seen = np.zeros(len(ids), bool)
        for place, number in enumerate(ids.tolist()):
            row = self._get(number)
            if row is None:
                continue
            lengths[place], visits[place], seen[place] = row.length, row.visits, True
            if _fits(row, like):
                for (start, stop), array, tokens in zip(
                    _spans(row.length, like), rows, like.tokens, strict=True
                ):
                    target = array[place, : row.length] if tokens else array[place]
                    data = row.data[start:stop].view(array.dtype)
                    target[...] = data.reshape(target.shape)
        for number in ids.tolist() if self._mapped else ():
            self._base.pop(number, None)  # it was read ahead, and is used now
        self._out |= set(ids[ids >= 0].tolist())
        return Memory(rows, lengths, seen, visits, tokens=like.tokens)

    def put(self, ids: Any, memory: Memory) -> list[int]:
        """Takes a batch's memory back.

        Returns:
          The ids that could not be kept, since the two ends had parted: they are
          forgotten here, and must be at the other end.
        """
        ids = np.asarray(ids).tolist()
        arrays = [np.asarray(a) for a in memory.rows]
        lengths, seen, visits = map(
            np.asarray, (memory.lengths, memory.seen, memory.visits)
        )
        lost = []
        for place, number in enumerate(ids):
            if number < 0:
                continue
            self._out.discard(number)
            if not seen[place]:
                lost.append(number)
                continue
            length = int(lengths[place])
            parts = [
                a[place, :length] if tokens else a[place]
                for a, tokens in zip(arrays, memory.tokens, strict=True)
            ]
            flat = [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in parts]
            data = np.concatenate([np.zeros(0, np.uint8), *flat])
            self._new[number] = Row(data, length, int(visits[place]))
        self.forget(lost)
        return lost

    def release(self, ids: Any) -> None:
        """A batch's memory is not wanted any more; nothing has changed."""
        self._out -= set(np.asarray(ids).tolist())

    def forget(self, ids: Iterable[int]) -> None:
        """Drops examples: each is sent whole at its next visit."""
        for number in ids:
            if self._get(number) is not None:
                self._new[number] = None

    def prefetch(self, ids: Any) -> None:
        """Begins to read the rows of a batch that comes next; only a map has to."""
        if self._file is None or not self._mapped:
            return
        if self._reader is not None:
            self._reader.join()
        file, numbers = self._file, [int(n) for n in np.asarray(ids) if n >= 0]

        def read():
            found = {n: file.get(n) for n in numbers if n not in self._new}
            self._base.update({n: r for n, r in found.items() if r is not None})

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()

    def save(self, step: int) -> None:
        """Writes what is new, for a checkpoint that the caller then takes."""
        if self._file is not None:
            self._file.write(step, self._new)

    def settle(self, step: int) -> None:
        """The checkpoint of a step is taken: the rows as they are now belong to it."""
        self._wait()
        if self._file is not None:
            self._file.apply(step)
        if self._mapped:
            self._base = {}
        else:
            kept = {**self._base, **self._new}
            self._base = {n: row for n, row in kept.items() if row is not None}
        self._new = {}

    def restore(self, step: int) -> None:
        """Goes back to the rows of the checkpoint of a step.

        Raises:
          RowError: when the folder has those of another.
        """
        self._wait()
        self._new, self._out = {}, set()
        if self._file is None:
            return
        self._file.open(step)
        found = {} if self._mapped else {n: self._file.get(n) for n in self._file}
        self._base = {n: row for n, row in found.items() if row is not None}

    def _wait(self) -> None:
        if self._reader is not None:
            self._reader.join()
        self._reader = None

    def _get(self, number: int) -> Row | None:
        if number in self._new:
            return self._new[number]
        if number in self._base or self._file is None or not self._mapped:
            return self._base.get(number)
        return self._file.get(number)


def _spans(length: int, like: Memory) -> list[tuple[int, int]]:
    """Where each array's bytes are in a row of so many tokens."""
    out, start = [], 0
    for array, tokens in zip(like.rows, like.tokens, strict=True):
        shape = (length, *array.shape[2:]) if tokens else array.shape[1:]
        stop = start + math.prod(shape) * np.dtype(array.dtype).itemsize
        out.append((start, stop))
        start = stop
    return out


def _fits(row: Row, like: Memory) -> bool:
    """Whether a row is one of this batch: of more tokens it cannot be the same text."""
    steps = [a.shape[1] for a, t in zip(like.rows, like.tokens, strict=True) if t]
    size = _spans(row.length, like)[-1][1] if like.rows else 0
    return len(row.data) == size and all(row.length <= n for n in steps)
