"""TensorFlow Datasets by name; an extra."""

import importlib.util

import numpy as np

from splitjax.data.image_table import ImageTable
from splitjax.data.table import DataError, Table

TEXTS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("sentence", None),
    ("text", None),
)
SPLIT = {"dev": "validation"}


def from_tfds(name: str, split: str, *, data_dir: str | None = None) -> Table:
    """A table of a TFDS data set that is prepared, or can be downloaded.

    Args:
      name: as TFDS has it, `glue/sst2` or `imdb_reviews`.
      split: "train", "dev" (TFDS's "validation") or "test".
      data_dir: TFDS's folder.

    Raises:
      DataError: when tensorflow-datasets, or TensorFlow where the builder needs it, is
        not installed; at once, before anything is downloaded. Also for a data set
        without known columns of text.

    Example:
      >>> from_tfds.__name__
      'from_tfds'
    """
    _installed(name)
    if name.startswith("glue") and importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            f"tfds:{name}: the builder of GLUE needs TensorFlow, which is not "
            "installed. Install tensorflow, or give the official TSV files "
            "(--config.data_dir)"
        )
    builder, source = _source(name, SPLIT.get(split, split), data_dir)
    columns = source[0].keys()
    known = [(a, b) for a, b in TEXTS if {a, b or a, "label"} <= set(columns)]
    if not known:
        raise DataError(
            f"tfds:{name} has the columns {sorted(columns)}; known are 'label' with "
            + ", or ".join(" and ".join(filter(None, pair)) for pair in TEXTS)
        )
    first, second = known[0]
    feature = builder.info.features["label"]

    def text(value):
        return value.decode() if isinstance(value, bytes) else str(value)

    rows = [source[i] for i in range(len(source))]
    return Table(
        name,
        split,
        [text(row[first]) for row in rows],
        [text(row[second]) for row in rows] if second else None,
        np.array([row["label"] for row in rows]),
        getattr(feature, "num_classes", 0) or 0,
    )


def images_from_tfds(
    name: str, split: str, *, data_dir: str | None = None
) -> ImageTable:
    """An image table of a TFDS data set that is prepared, or can be downloaded.

    TFDS decodes its own `Image` features with TensorFlow; pictures that are stored as
    tensors need none.

    Args:
      name: as TFDS has it, `cifar10`.
      split: "train" or "test".
      data_dir: TFDS's folder.

    Raises:
      DataError: when tensorflow-datasets is not installed, for pictures of unlike
        sizes, or for a data set without columns `image` and `label`.

    Example:
      >>> images_from_tfds.__name__
      'images_from_tfds'
    """
    _installed(name)
    builder, source = _source(name, split, data_dir)
    columns = sorted(source[0].keys())
    if not {"image", "label"} <= set(columns):
        raise DataError(f"tfds:{name} has the columns {columns}, not image and label")
    rows = [source[i] for i in range(len(source))]
    image = [np.asarray(row["image"]) for row in rows]
    if sizes := {picture.shape for picture in image[1:]} - {image[0].shape}:
        raise DataError(
            f"tfds:{name} has pictures of unlike sizes: {image[0].shape}, {sizes.pop()}"
        )
    label = np.array([row["label"] for row in rows])
    classes = getattr(builder.info.features["label"], "num_classes", None)
    return ImageTable(
        name, split, np.stack(image), label, classes or int(label.max()) + 1
    )


def _installed(name: str) -> None:
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise DataError(
            f"tfds:{name} needs tensorflow-datasets: pip install 'splitjax[tfds]'"
        )


def _source(name: str, split: str, data_dir: str | None):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
        return builder, builder.as_data_source(split)
    except Exception as error:
        raise DataError(f"tfds:{name} ({split}): {error}") from error
