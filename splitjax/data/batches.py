"""Batches of static shapes, in an order that is a pure function of its numbers."""

import bisect
import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from splitjax.data.order import Ordered
from splitjax.data.tokenize import Encoded

BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


class Batches(Ordered):
    """Batches of an encoded table, in the order of `Ordered`.

    A batch is a dict: `ids` (R, T) int32, `mask` (R, T) bool (padding is on the right),
    `types` (R, T) int32 for two texts in one sequence, `y` (B,) labels, `index` (B,)
    int32 rows of the table, `n_valid` int. R is B, or 2B for two towers, one after the
    other. T is the least bucket that the batch fits in. A short batch is filled up with
    rows without tokens.

    Args:
      encoded: the table in tokens.
      batch_size: examples in one optimizer step.
      seed: of the order.
      buckets: lengths that T may have; each is a compiled program.
      group_by_length: put texts of like length together (sorted inside of windows of 50
        random batches, which are then shuffled): less padding is computed.
      fixed: every epoch has the batches of the first one, in an order of its own.

    Raises:
      ValueError: for a batch size below 1.

    Example:
      >>> one = [np.arange(n, dtype=np.int32) for n in (3, 9, 2)]
      >>> encoded = Encoded((one,), None, np.zeros(3, np.int32), 16)
      >>> [[batch]] = Batches(encoded, 4).epoch(0, shuffle=False)
      >>> batch["ids"].shape, batch["n_valid"], batch["mask"].sum(1).tolist()
      ((4, 16), 3, [3, 9, 2, 0])
    """

    def __init__(
        self,
        encoded: Encoded,
        batch_size: int,
        *,
        seed: int = 0,
        buckets: Sequence[int] = BUCKETS,
        group_by_length: bool = False,
        fixed: bool = False,
    ):
        self._lengths = encoded.lengths()
        super().__init__(
            len(encoded),
            batch_size,
            seed=seed,
            lengths=self._lengths if group_by_length else None,
            fixed=fixed,
        )
        self.encoded = encoded
        longest = encoded.max_length
        self._buckets = [b for b in sorted(buckets) if b < longest] + [longest]

    def _batch(self, rows: np.ndarray, size: int) -> dict:
        longest = int(self._lengths[rows].max(initial=1))
        width = self._buckets[bisect.bisect_left(self._buckets, longest)]
        towers = len(self.encoded.ids)
        ids = np.zeros((towers, size, width), np.int32)
        mask = np.zeros((towers, size, width), bool)
        types = np.zeros((size, width), np.int32)
        for place, row in enumerate(rows):
            for tower, column in enumerate(self.encoded.ids):
                length = len(column[row])
                ids[tower, place, :length] = column[row]
                mask[tower, place, :length] = True
            if self.encoded.types is not None:
                types[place, : len(self.encoded.types[row])] = self.encoded.types[row]
        label = np.zeros(size, self.encoded.label.dtype)
        index = np.full(size, -1, np.int32)
        label[: len(rows)] = self.encoded.label[rows]
        index[: len(rows)] = rows
        batch = {
            "ids": ids.reshape(-1, width),
            "mask": mask.reshape(-1, width),
            "y": label,
            "index": index,
            "n_valid": len(rows),
        }
        if self.encoded.types is not None:
            batch["types"] = types
        return batch


def model_inputs(batch: dict) -> dict:
    """What of a batch a model reads: all but labels and counts.

    Example:
      >>> model_inputs({"ids": 1, "mask": 2, "y": 3, "index": 4, "n_valid": 5})
      {'ids': 1, 'mask': 2}
    """
    return {k: v for k, v in batch.items() if k not in ("y", "index", "n_valid")}


def name_of(batch: dict) -> str:
    """A name for a batch's rows and shape; equal ones are equal batches of a table.

    Example:
      >>> batch = {"ids": np.zeros((2, 8)), "index": np.array([3, 4])}
      >>> len(name_of(batch)), name_of(batch) == name_of(dict(batch))
      (32, True)
    """
    rows = np.ascontiguousarray(batch["index"], np.int32).tobytes()
    shapes = sorted((k, np.shape(v)) for k, v in model_inputs(batch).items())
    shape = repr(shapes).encode()
    return hashlib.blake2b(rows + shape, digest_size=16).hexdigest()


def row_ids(batch: dict) -> np.ndarray:
    """Which example each row of an input is; -1 is filling.

    Two towers read two texts of an example, which are rows of their own: text t of
    example i is 2 i + t.

    Example:
      >>> batch = {"ids": np.zeros((4, 8)), "index": np.array([3, -1])}
      >>> row_ids(batch).tolist()
      [6, -1, 7, -1]
    """
    index = batch["index"]
    rows = next(iter(model_inputs(batch).values())).shape[0]
    texts = rows // max(len(index), 1)
    ids = [np.where(index < 0, -1, index * texts + text) for text in range(texts)]
    return np.concatenate(ids).astype(np.int32)


def ahead(steps: Iterable[list[dict]]) -> Iterator[tuple[list[dict], list[dict]]]:
    """Each with the one after it; nothing after the last.

    Example:
      >>> list(ahead([[1], [2]]))
      [([1], [2]), ([2], [])]
    """
    left = iter(steps)
    now = next(left, None)
    while now is not None:
        later = next(left, None)
        yield now, later or []
        now = later
