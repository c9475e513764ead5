"""The order in which the rows of a table are visited: a pure function of numbers."""

from collections.abc import Iterator

import numpy as np


class Ordered:
    """Batches of some table; a subclass builds them from their rows by `_batch`.

    Args:
      count: rows of the table.
      batch_size: examples in one optimizer step.
      seed: of the order.
      lengths: (N,) where rows of like length are put together: they are sorted inside
        of windows of 50 random batches, which are then shuffled.
      fixed: every epoch has the batches of the first one, in an order of its own.

    Raises:
      ValueError: for a batch size below 1.

    Example:
      >>> made = Ordered(5, 2)
      >>> [rows.tolist() for rows in made.order(0, shuffle=False)]
      [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int = 0,
        lengths: np.ndarray | None = None,
        fixed: bool = False,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: it must be 1 or more")
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.lengths = lengths
        self.fixed = fixed

    def __len__(self) -> int:
        """The number of examples."""
        return self.count

    def steps_per_epoch(self, slots: int = 1) -> int:
        """Optimizer steps of one pass over a slot's examples (the first slot's)."""
        return -(-len(range(0, len(self), slots)) // self.batch_size)

    def order(
        self, epoch: int, *, slot: int = 0, slots: int = 1, shuffle: bool = True
    ) -> list[np.ndarray]:
        """The rows of each step: a pure function of (seed, slot, epoch)."""
        rows = np.arange(len(self))
        size = self.batch_size
        if slots > 1:
            # One shuffle for all epochs deals the examples out to the slots.
            dealt = np.random.default_rng([self.seed, 0]).permutation(len(self))
            rows = np.sort(dealt[slot::slots])
        if not shuffle:
            return [rows[i : i + size] for i in range(0, len(rows), size)]
        if self.fixed and epoch:
            first = self.order(0, slot=slot, slots=slots)
            random = np.random.default_rng([self.seed, 2, slot, epoch])
            return [first[i] for i in random.permutation(len(first))]
        random = np.random.default_rng([self.seed, 1, slot, epoch])
        rows = random.permutation(rows)
        if self.lengths is None:
            return [rows[i : i + size] for i in range(0, len(rows), size)]
        groups = []
        for start in range(0, len(rows), 50 * size):
            window = rows[start : start + 50 * size]
            window = window[np.argsort(self.lengths[window], kind="stable")]
            groups += [window[i : i + size] for i in range(0, len(window), size)]
        return [groups[i] for i in random.permutation(len(groups))]

    def epoch(
        self,
        epoch: int,
        *,
        slot: int = 0,
        slots: int = 1,
        shuffle: bool = True,
        micro: int = 1,
        skip: int = 0,
    ) -> Iterator[list[dict]]:
        """The steps of an epoch.

        Args:
          epoch: its number.
          slot: which edge's part of the examples.
          slots: how many edges there are.
          shuffle: whether the order is random.
          micro: micro-batches of a step, each of `batch_size / micro` rows.
          skip: steps to leave out at the start; nothing is built for them.

        Yields:
          For each step the list of its micro-batches.
        """
        size = -(-self.batch_size // micro)
        for rows in self.order(epoch, slot=slot, slots=slots, shuffle=shuffle)[skip:]:
            yield [
                self._batch(rows[i * size : (i + 1) * size], size) for i in range(micro)
            ]

    def _batch(self, rows: np.ndarray, size: int) -> dict:
        """The rows of a table as a batch that is filled up to a size."""
        raise NotImplementedError(f"{type(self).__name__} defines no _batch()")
