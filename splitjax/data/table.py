"""A table: the texts and labels of one split of a data set."""

import dataclasses

import numpy as np


class DataError(ValueError):
    """Data that is missing, or is not what it should be."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Texts and labels; row i is example i.

    Attributes:
      name: of the data set.
      split: "train", "dev" or "test".
      text_a: N texts.
      text_b: N second texts, or None.
      label: (N,), int32 classes or float32 values.
      classes: how many; 0 for a regression.

    Raises:
      DataError: for an empty table, columns of unlike length, a label outside of the
        range, or one that is no number.

    Example:
      >>> table = Table("toy", "train", ["a", "b"], None, np.array([0, 1]), 2)
      >>> len(table), len(table.take(1)), table.label.dtype.name
      (2, 1, 'int32')
    """

    name: str
    split: str
    text_a: list[str]
    text_b: list[str] | None
    label: np.ndarray
    classes: int

    def __post_init__(self):
        """Checks the columns."""
        where = f"{self.name} ({self.split})"
        count = len(self.text_a)
        lengths = {count, len(self.label)}
        if self.text_b is not None:
            lengths.add(len(self.text_b))
        if len(lengths) > 1:
            raise DataError(f"{where}: columns of unlike lengths {sorted(lengths)}")
        if not count:
            raise DataError(f"{where} is empty: there is nothing to learn or score")
        label = np.asarray(self.label)
        if self.classes:
            wrong = np.flatnonzero(~np.isin(label, np.arange(self.classes)))
            wanted = f"a class from 0 to {self.classes - 1}"
        else:
            wrong = np.flatnonzero(~np.isfinite(label))
            wanted = "a finite number"
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{where}: row {row} has the label {label[row]}, not {wanted}; "
                f"{len(wrong)} rows are so"
            )
        kind = np.int32 if self.classes else np.float32
        object.__setattr__(self, "label", label.astype(kind))

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.text_a)

    def take(self, count: int) -> "Table":
        """The first rows."""
        return self.pick(np.arange(len(self)) < count)

    def pick(self, mask: np.ndarray) -> "Table":
        """The rows of a mask."""
        rows = np.flatnonzero(mask)
        return dataclasses.replace(
            self,
            text_a=[self.text_a[i] for i in rows],
            text_b=None if self.text_b is None else [self.text_b[i] for i in rows],
            label=self.label[rows],
        )
