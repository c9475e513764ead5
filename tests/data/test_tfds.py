import importlib.machinery
import sys
import types

import numpy as np
import pytest

from splitjax import data
from splitjax.data import tfds
from splitjax.data.table import DataError


@pytest.fixture
def installed(monkeypatch):
    """A function that says which of the two libraries can be found."""

    def make(*names):
        find = tfds.importlib.util.find_spec
        both = ("tensorflow", "tensorflow_datasets")

        def found(name, *args):
            if name in both:
                spec = importlib.machinery.ModuleSpec(name, None)
                return spec if name in names else None
            return find(name, *args)

        monkeypatch.setattr(tfds.importlib.util, "find_spec", found)

    return make


@pytest.fixture
def library(installed, monkeypatch):
    """A stand-in for the library: a function from rows and classes to data sets."""
    installed("tensorflow_datasets")

    def make(rows, classes=None):
        asked = []

        class Builder:
            info = types.SimpleNamespace(
                features={"label": types.SimpleNamespace(num_classes=classes)}
            )

            def download_and_prepare(self):
                pass

            def as_data_source(self, split):
                asked.append(split)
                if split == "test":
                    raise KeyError("Unknown split 'test'")
                return rows

        module = types.ModuleType("tensorflow_datasets")
        module.builder = lambda name, **kwargs: Builder()
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
        return asked

    return make


def test_without_the_library_the_extra_is_named(installed):
    installed()
    with pytest.raises(DataError, match=r"tfds:imdb needs.*pip install.*\[tfds\]"):
        data.load("tfds:imdb", "train")


def test_glue_without_tensorflow_is_told_at_once(installed):
    installed("tensorflow_datasets")
    with pytest.raises(DataError, match="needs TensorFlow.*--config.data_dir"):
        data.load("tfds:glue/sst2", "train")


def test_texts_and_classes_are_read(library):
    asked = library([{"text": b"good", "label": 1}, {"text": "bad", "label": 0}], 2)
    table = data.load("tfds:imdb", "dev")
    assert table.text_a == ["good", "bad"] and table.text_b is None
    assert table.label.tolist() == [1, 0] and table.classes == 2
    assert asked == ["validation"]


def test_pairs_and_values_are_read(library):
    row = {"premise": b"a", "hypothesis": b"b", "label": np.float32(0.5), "id": 3}
    library([row])
    table = data.load("tfds:pairs", "train")
    assert (table.text_a, table.text_b) == (["a"], ["b"])
    assert table.classes == 0 and table.label.tolist() == [0.5]


@pytest.mark.parametrize("row", [{"image": 0, "label": 1}, {"text": "a", "stars": 1}])
def test_unknown_columns_are_listed(row, library):
    library([row])
    with pytest.raises(
        DataError, match=rf"columns \['{min(row)}', .*known are 'label'"
    ):
        data.load("tfds:other", "train")


def test_what_the_library_says_is_passed_on(library):
    library([])
    with pytest.raises(DataError, match=r"tfds:imdb \(test\): .*Unknown split"):
        data.load("tfds:imdb", "test")


def test_pictures_are_read(library):
    row = {"image": np.zeros((2, 2, 1), np.uint8), "label": 1}
    asked = library([row, row], 3)
    table = data.load_images("tfds:cifar10", "train")
    assert table.image.shape == (2, 2, 2, 1) and table.classes == 3
    assert asked == ["train"]
    library([row, {**row, "image": np.zeros((2, 3, 1), np.uint8)}])
    with pytest.raises(DataError, match=r"unlike sizes: \(2, 2, 1\), \(2, 3, 1\)"):
        data.load_images("tfds:cats", "train")
    library([{"text": "a", "label": 1}])
    with pytest.raises(DataError, match="columns .'label', 'text'., not image"):
        data.load_images("tfds:imdb", "train")


def test_pictures_need_the_library(installed):
    installed()
    with pytest.raises(DataError, match=r"tfds:cifar10 needs.*pip install.*\[tfds\]"):
        data.load_images("tfds:cifar10", "train")
