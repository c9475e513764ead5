"""TensorFlow Datasets by name; an extra."""

import importlib.util

import numpy as np

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
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise DataError(
            f"tfds:{name} needs tensorflow-datasets: pip install 'splitjax[tfds]'"
        )
    if name.startswith("glue") and importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            f"tfds:{name}: the builder of GLUE needs TensorFlow, which is not "
            "installed. Install tensorflow, or give the official TSV files "
            "(--config.data_dir)"
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
        source = builder.as_data_source(SPLIT.get(split, split))
    except Exception as error:
        raise DataError(f"tfds:{name} ({split}): {error}") from error
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
