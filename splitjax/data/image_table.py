"""An image table: the pictures and classes of one split of a data set."""

import dataclasses

import numpy as np

from splitjax.data.order import Ordered
from splitjax.data.table import DataError


@dataclasses.dataclass(frozen=True)
class ImageTable:
    """Pictures and their classes; row i is example i.

    Attributes:
      name: of the data set.
      split: "train" or "test".
      image: (N, height, width, channels) uint8, as stored; `models.pixels` norms them.
      label: (N,), int32 classes.
      classes: how many.

    Raises:
      DataError: for an empty table, columns of unlike length, pictures of another
        dtype or rank, or a label outside of the range.

    Example:
      >>> image = np.zeros((2, 4, 4, 1), np.uint8)
      >>> table = ImageTable("toy", "train", image, np.array([0, 1]), 2)
      >>> len(table), len(table.take(1)), table.label.dtype.name, table.shape
      (2, 1, 'int32', (4, 4, 1))
    """

    name: str
    split: str
    image: np.ndarray
    label: np.ndarray
    classes: int

    def __post_init__(self):
        """Checks the columns."""
        where, image = f"{self.name} ({self.split})", np.asarray(self.image)
        label = np.asarray(self.label)
        if image.dtype != np.uint8 or image.ndim != 4:
            raise DataError(
                f"{where}: pictures are uint8 (N, height, width, channels), not "
                f"{image.dtype} {image.shape}"
            )
        if label.shape != image.shape[:1]:
            raise DataError(
                f"{where}: {len(image)} pictures with labels of shape {label.shape}"
            )
        if not image.size:
            raise DataError(f"{where} is empty: there is nothing to learn or score")
        wrong = np.flatnonzero(~np.isin(label, np.arange(self.classes)))
        if len(wrong):
            raise DataError(
                f"{where}: row {wrong[0]} has the label {label[wrong[0]]}, not a class "
                f"from 0 to {self.classes - 1}; {len(wrong)} rows are so"
            )
        object.__setattr__(self, "image", image)
        object.__setattr__(self, "label", label.astype(np.int32))

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.image)

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and channels of a picture."""
        return self.image.shape[1:]

    def take(self, count: int) -> "ImageTable":
        """The first rows."""
        return self.pick(np.arange(len(self)) < count)

    def pick(self, mask: np.ndarray) -> "ImageTable":
        """The rows of a mask."""
        return dataclasses.replace(self, image=self.image[mask], label=self.label[mask])

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel, of values from 0 to 1."""
        total, square = (np.zeros(self.shape[-1], np.int64) for _ in range(2))
        for start in range(0, len(self), 1000):  # a copy in int64 stays small
            part = self.image[start : start + 1000].reshape(-1, self.shape[-1])
            part = part.astype(np.int64)
            total += part.sum(0)
            square += (part * part).sum(0)
        count = self.image[..., 0].size
        mean = total / count
        deviation = np.sqrt(np.maximum(square / count - mean**2, 0))
        return tuple((mean / 255).tolist()), tuple((deviation / 255).tolist())


class ImageBatches(Ordered):
    """Batches of an image table, in the order of `Ordered`.

    A batch is a dict: `image` (B, height, width, channels) uint8, `mask` (B,) bool, `y`
    (B,) classes, `index` (B,) int32 rows of the table, `n_valid` int. A short batch is
    filled up with black pictures, whose mask is False and whose index is -1.

    Args:
      table: the pictures.
      batch_size: examples in one optimizer step.
      seed: of the order.
      fixed: every epoch has the batches of the first one, in an order of its own.

    Raises:
      ValueError: for a batch size below 1.

    Example:
      >>> image = np.ones((3, 4, 4, 1), np.uint8)
      >>> table = ImageTable("toy", "train", image, np.array([0, 1, 1]), 2)
      >>> [[first], [last]] = ImageBatches(table, 2).epoch(0, shuffle=False)
      >>> last["image"].shape, last["mask"].tolist(), last["index"].tolist()
      ((2, 4, 4, 1), [True, False], [2, -1])
    """

    def __init__(
        self, table: ImageTable, batch_size: int, *, seed: int = 0, fixed: bool = False
    ):
        super().__init__(len(table), batch_size, seed=seed, fixed=fixed)
        self.table = table

    def _batch(self, rows: np.ndarray, size: int) -> dict:
        image = np.zeros((size, *self.table.shape), np.uint8)
        label, index = np.zeros(size, np.int32), np.full(size, -1, np.int32)
        image[: len(rows)] = self.table.image[rows]
        label[: len(rows)] = self.table.label[rows]
        index[: len(rows)] = rows
        mask = np.arange(size) < len(rows)
        inputs = {"image": image, "mask": mask}
        return {**inputs, "y": label, "index": index, "n_valid": len(rows)}
