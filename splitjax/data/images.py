"""The image data sets that are known by name, and the door to all: `load_images`."""

import gzip
import json
import math
import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from splitjax.core.tree import nearest
from splitjax.data import archive
from splitjax.data.image_table import ImageTable
from splitjax.data.table import DataError
from splitjax.data.tfds import images_from_tfds

SPLITS = ("train", "test")

# Mean and deviation of each channel over the training pictures, of values from 0 to 1.
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
}


def load_images(
    name: str, split: str, *, data_dir: str | None = None, fetch: bool = True
) -> ImageTable:
    """One split of an image data set.

    Args:
      name: one of `IMAGES`; a folder of the user's with `train.npz` and `test.npz`,
        each of `image` (N, height, width, channels) uint8 and `label` (N,); or
        "tfds:NAME".
      split: "train" or "test".
      data_dir: TFDS's folder.
      fetch: whether to fetch a pinned archive that is missing.

    Raises:
      DataError: for a name or split that there is not, or bad data.
      ArchiveError: when an archive cannot be had.

    Example:
      >>> load_images("digits", "train").image.shape
      (1437, 8, 8, 1)
      >>> load_images("cifar", "train")
      Traceback (most recent call last):
      ...
      splitjax.data.table.DataError: no image data set 'cifar': did you mean ...
    """
    if split not in SPLITS:
        raise DataError(f"no split {split!r}: {nearest(split, SPLITS)}")
    if name.startswith("tfds:"):
        return images_from_tfds(name.removeprefix("tfds:"), split, data_dir=data_dir)
    if name == "digits":
        return _digits(split)
    if name in IMAGES:
        return IMAGES[name](archive.folder(name, fetch=fetch), split)
    if os.sep in name or pathlib.Path(name).is_dir():
        return _npz(pathlib.Path(name), split)
    raise DataError(
        f"no image data set {name!r}: {nearest(name, (*IMAGES, 'digits'))}; or a "
        "folder with train.npz and test.npz, or tfds:NAME"
    )


def statistics(table: ImageTable) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel: as published, or of the table itself.

    Example:
      >>> image = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)
      >>> statistics(ImageTable("toy", "train", image, np.array([0]), 1))
      ((0.5,), (0.5,))
    """
    return STATISTICS.get(table.name) or table.statistics()


def _cifar10(folder: pathlib.Path, split: str) -> ImageTable:
    """A row of each PNG file is one picture of 32 x 32 pixels, its lines in a row."""
    from PIL import Image

    files = sorted(folder.glob(f"{split}_*.png"))
    rows = []
    for file in files:
        with Image.open(file) as picture:
            rows.append(np.asarray(picture.convert("RGB")).reshape(-1, 32, 32, 3))
    label = json.loads((folder / f"{split}.json").read_text())
    return ImageTable("cifar10", split, np.concatenate(rows), np.array(label), 10)


def _fashion_mnist(folder: pathlib.Path, split: str) -> ImageTable:
    image = _idx(folder / f"{split}_image.gz")[..., None]
    label = _idx(folder / f"{split}_label.gz")
    return ImageTable("fashion_mnist", split, image, label, 10)


def _idx(path: pathlib.Path) -> np.ndarray:
    """An array of bytes as MNIST has it: two zeros, 8, the rank, then the sizes."""
    try:
        with gzip.open(path) as file:
            whole = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: {error}") from error
    head, rank = whole[:3], whole[3] if len(whole) > 3 else 0
    sizes = np.frombuffer(whole[4 : 4 + 4 * rank], ">u4").tolist()
    content = whole[4 + 4 * rank :]
    if head != b"\0\0\x08" or not rank or math.prod(sizes) != len(content):
        raise DataError(
            f"{path} is no idx file of bytes: it begins with {whole[:4].hex()}, says "
            f"sizes {sizes}, and has {len(content)} values"
        )
    return np.frombuffer(content, np.uint8).reshape(sizes)


def _digits(split: str) -> ImageTable:
    """Scikit-learn's 1,797 digits; every fifth one is for the test."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    image = (found.images * 15).astype(np.uint8)[..., None]  # 0 to 16 as stored
    table = ImageTable("digits", split, image, found.target, 10)
    return table.pick((np.arange(len(table)) % 5 == 0) == (split == "test"))


def _npz(folder: pathlib.Path, split: str) -> ImageTable:
    path = folder / f"{split}.npz"
    if not path.is_file():
        raise DataError(f"there is no {path}: it holds `image` and `label`")
    try:
        with np.load(path) as file:
            image, label = file["image"], file["label"]
    except (ValueError, KeyError, OSError) as error:
        raise DataError(f"{path}: {error}") from error
    if not np.issubdtype(label.dtype, np.integer) or not label.size:
        raise DataError(f"{path}: labels are whole numbers from 0 on: {label.dtype}")
    # Both splits know the classes: those of the training part.
    if split == "test" and (folder / "train.npz").is_file():
        return ImageTable(
            folder.name, split, image, label, _npz(folder, "train").classes
        )
    return ImageTable(folder.name, split, image, label, int(label.max()) + 1)


IMAGES: dict[str, Callable[[pathlib.Path, str], ImageTable]] = {
    "cifar10": _cifar10,
    "fashion_mnist": _fashion_mnist,
}
