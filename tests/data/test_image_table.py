import numpy as np
import pytest

from splitjax.data.batches import model_inputs, name_of
from splitjax.data.image_table import ImageBatches, ImageTable
from splitjax.data.table import DataError


def table(count=23):
    """Pictures whose every pixel is their row's number + 1."""
    image = np.broadcast_to(
        np.arange(1, count + 1)[:, None, None, None], (count, 4, 3, 2)
    )
    return ImageTable("toy", "train", image.astype(np.uint8), np.arange(count) % 5, 5)


def flat(order):
    return [rows.tolist() for rows in order]


def test_order_is_a_function_of_seed_slot_and_epoch():
    def order(seed=0, epoch=0, **kwargs):
        made = ImageBatches(table(), 4, seed=seed)
        made.order(7), list(made.epoch(5))  # what was asked before does not matter
        return flat(made.order(epoch, **kwargs))

    assert order(epoch=1) == order(epoch=1)
    orders = [
        order(),
        order(epoch=1),
        order(seed=1),
        order(slot=0, slots=2),
        order(slot=1, slots=2),
    ]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert order(shuffle=False)[0] == [0, 1, 2, 3]


@pytest.mark.parametrize("slots", [1, 3, 23])
def test_an_epoch_has_every_example_once_over_its_slots(slots):
    made, parts = ImageBatches(table(), 4, seed=3), []
    for epoch in (0, 1):
        rows = [
            np.concatenate(made.order(epoch, slot=s, slots=slots)) for s in range(slots)
        ]
        assert sorted(np.concatenate(rows)) == list(range(23))
        parts.append([sorted(r) for r in rows])
    assert parts[0] == parts[1]  # an edge keeps its own examples


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_a_batch_holds_its_rows_and_then_black_pictures(micro):
    data, seen, short = table(), [], 0
    for batches in ImageBatches(data, 4, seed=1).epoch(0, micro=micro):
        for batch in batches:
            size, count = -(-4 // micro), batch["n_valid"]
            assert batch["image"].dtype == np.uint8
            assert batch["image"].shape == (size, 4, 3, 2)
            assert batch["mask"].tolist() == [i < count for i in range(size)]
            assert batch["index"][:count].tolist() == [
                i - 1 for i in batch["image"][:count, 0, 0, 0]
            ]
            assert (batch["index"][count:] == -1).all()
            assert not batch["image"][count:].any() and not batch["y"][count:].any()
            wanted = data.label[batch["index"][:count]]
            assert batch["y"][:count].tolist() == wanted.tolist()
            assert set(model_inputs(batch)) == {"image", "mask"}
            seen += batch["index"][:count].tolist()
            short += count < size
    assert sorted(seen) == list(range(23)) and short


def test_fixed_batches_come_again_in_another_order():
    made = ImageBatches(table(), 4, seed=3, fixed=True)
    epochs = [[name_of(batch) for [batch] in made.epoch(e)] for e in range(2)]
    assert set(epochs[0]) == set(epochs[1]) and epochs[0] != epochs[1]
    assert len(set(epochs[0])) == 6


def test_rows_are_taken_and_picked():
    data = table()
    assert data.take(2).image[:, 0, 0, 0].tolist() == [1, 2]
    assert data.pick(data.label == 4).label.tolist() == [4] * 4
    assert data.shape == (4, 3, 2)


def test_statistics_are_those_of_floats():
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)
    mean, deviation = ImageTable("t", "train", image, np.zeros(5, int), 1).statistics()
    values = image.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(deviation, values.std(0))


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (np.zeros((2, 4, 4, 1)), [0, 0], "uint8 .*, not float64"),
        (np.zeros((2, 4, 4), np.uint8), [0, 0], r"not uint8 \(2, 4, 4\)"),
        (np.zeros((2, 4, 4, 1), np.uint8), [0], r"2 pictures .* shape \(1,\)"),
        (np.zeros((0, 4, 4, 1), np.uint8), [], "toy .train. is empty"),
        (np.zeros((3, 4, 4, 1), np.uint8), [0, 2, -1], "row 1 has the label 2.*2 rows"),
    ],
    ids=["float", "rank", "lengths", "empty", "label"],
)
def test_a_bad_table_is_told(image, label, message):
    with pytest.raises(DataError, match=message):
        ImageTable("toy", "train", image, np.array(label, int), 2)


def test_a_batch_has_a_row():
    with pytest.raises(ValueError, match="batch_size=0"):
        ImageBatches(table(), 0)
