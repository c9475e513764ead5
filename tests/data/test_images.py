import gzip
import json

import numpy as np
import pytest
from PIL import Image

from splitjax import data
from splitjax.data import images
from splitjax.data.table import DataError

FIRST = {"train": [6, 9, 9, 4, 1, 1, 2, 7, 8, 3], "test": [3, 8, 8, 0, 6]}


def idx(array) -> bytes:
    head = bytes([0, 0, 8, array.ndim])
    return head + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("cifar", "train", "no image data set 'cifar': did you mean 'cifar10'"),
        ("else", "train", "There are: cifar10, fashion_mnist, digits; or a folder"),
        ("digits", "dev", "no split 'dev'.*There are: train, test"),
        ("gone/folder", "train", "there is no gone/folder/train.npz"),
    ],
)
def test_what_there_is_not_is_told(name, split, message):
    with pytest.raises(DataError, match=message):
        data.load_images(name, split)


def test_digits_are_parted_without_overlap():
    train, test = (data.load_images("digits", split) for split in ("train", "test"))
    assert (len(train), len(test), train.shape) == (1437, 360, (8, 8, 1))
    assert set(test.label) == set(range(10)) and train.image.max() == 240
    seen = {picture.tobytes() for picture in train.image}
    assert not any(picture.tobytes() in seen for picture in test.image)


def test_a_folder_of_the_users(tmp_path):
    image = np.arange(2 * 3 * 3 * 1, dtype=np.uint8).reshape(2, 3, 3, 1)
    np.savez(tmp_path / "train.npz", image=image, label=np.array([0, 2]))
    np.savez(tmp_path / "test.npz", image=image[:1], label=np.array([1]))
    train, test = (data.load_images(str(tmp_path), s) for s in ("train", "test"))
    assert np.array_equal(train.image, image) and train.label.tolist() == [0, 2]
    assert train.classes == test.classes == 3 and len(test) == 1
    for arrays, message in (
        ({"image": image}, "label is not a file"),
        ({"image": image, "label": np.array([0.5, 1])}, "whole numbers.*float64"),
        ({"image": image, "label": np.array([0, -1])}, "label -1"),
        ({"image": image, "label": np.array(["a", None])}, "(?i)pickle"),
    ):
        np.savez(tmp_path / "train.npz", **arrays)
        with pytest.raises(DataError, match=message):
            data.load_images(str(tmp_path), "train")


def test_a_row_of_a_png_is_a_picture(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    for number, part in enumerate((rows[:3], rows[3:]), 1):
        Image.fromarray(part.reshape(-1, 1024, 3)).save(
            tmp_path / f"train_{number}.png"
        )
    (tmp_path / "train.json").write_text(json.dumps([1, 2, 3, 9]))
    found = images._cifar10(tmp_path, "train")
    assert np.array_equal(found.image, rows) and found.label.tolist() == [1, 2, 3, 9]


def test_idx_files(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    for kind, array in (("image", image), ("label", np.array([0, 1, 9], np.uint8))):
        with gzip.open(tmp_path / f"test_{kind}.gz", "wb") as file:
            file.write(idx(array))
    found = images._fashion_mnist(tmp_path, "test")
    assert np.array_equal(found.image[..., 0], image) and found.classes == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(idx(np.zeros(4, np.uint8))[:-1]), "sizes .4., and has 3 values"),
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\0"), "begins with 00000d01"),
        (gzip.compress(b""), "no idx file"),
        (b"<html>", "[Gg]zip"),
        (gzip.compress(idx(np.zeros(999, np.uint8)))[:-9], "ended"),
    ],
    ids=["short", "floats", "empty", "html", "cut off"],
)
def test_what_is_no_idx_file_is_told(content, message, tmp_path):
    path = tmp_path / "made.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"made.gz.*{message}"):
        images._idx(path)


@pytest.mark.parametrize(
    ("name", "counts", "shape"),
    [
        pytest.param(
            "cifar10",
            (50_000, 10_000),
            (32, 32, 3),
            marks=pytest.mark.real("cifar10"),
        ),
        pytest.param(
            "fashion_mnist",
            (60_000, 10_000),
            (28, 28, 1),
            marks=pytest.mark.real("fashion_mnist"),
        ),
    ],
)
def test_real_pictures_are_whole(name, counts, shape):
    for split, count in zip(("train", "test"), counts, strict=True):
        table = data.load_images(name, split, fetch=False)
        assert table.image.shape == (count, *shape)
        assert (np.bincount(table.label) == count // 10).all()
        if name == "cifar10":
            assert table.label[: len(FIRST[split])].tolist() == FIRST[split]
        if split == "train":
            tenth = table.pick(np.arange(count) % 10 == 0)
            for known, own in zip(
                images.statistics(table), tenth.statistics(), strict=True
            ):
                np.testing.assert_allclose(known, own, atol=1e-2)
