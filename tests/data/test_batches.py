import numpy as np
import pytest

from splitjax.data.batches import BUCKETS, Batches, model_inputs, name_of
from splitjax.data.synthetic import toy
from splitjax.data.tokenize import Encoded


def encoded(count=23, longest=40, towers=1):
    """Sequences of 2 to 40 tokens, each of its row's number + 1."""
    random = np.random.default_rng(0)
    lengths = random.integers(2, longest, (towers, count))
    ids = tuple(
        [np.full(n, i + 1, np.int32) for i, n in enumerate(row)] for row in lengths
    )
    return Encoded(ids, None, np.arange(count, dtype=np.int32), longest)


def flat(order):
    return [rows.tolist() for rows in order]


@pytest.mark.parametrize("grouped", [False, True])
def test_order_is_a_function_of_seed_slot_and_epoch(grouped):
    def order(seed=0, epoch=0, **kwargs):
        made = Batches(encoded(), 4, seed=seed, group_by_length=grouped)
        made.order(7), list(made.epoch(5))  # what was asked before does not matter
        return flat(made.order(epoch, **kwargs))

    assert order(epoch=1) == order(epoch=1)
    assert order(epoch=1, slot=1, slots=2) == order(epoch=1, slot=1, slots=2)
    orders = [
        order(),
        order(epoch=1),
        order(seed=1),
        order(slot=0, slots=2),
        order(slot=1, slots=2),
    ]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert order(shuffle=False)[0] == [0, 1, 2, 3]


@pytest.mark.parametrize("slots", [1, 2, 3, 23])
@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_has_every_example_once_over_its_slots(slots, grouped):
    made = Batches(encoded(), 4, seed=3, group_by_length=grouped)
    parts = []
    for epoch in (0, 1):
        rows = [
            np.concatenate(made.order(epoch, slot=s, slots=slots)) for s in range(slots)
        ]
        assert sorted(np.concatenate(rows)) == list(range(23))
        parts.append([sorted(r) for r in rows])
    assert parts[0] == parts[1]  # an edge keeps its own examples
    sizes = [len(p) for p in parts[0]]
    assert max(sizes) - min(sizes) <= 1
    assert len(made.order(0, slots=slots)) == made.steps_per_epoch(slots)


def test_a_batch_holds_its_rows_with_padding_on_the_right():
    data = encoded()
    for [batch] in Batches(data, 4).epoch(0):
        count = batch["n_valid"]
        for place, row in enumerate(batch["index"]):
            length = len(data.ids[0][row]) if place < count else 0
            assert batch["mask"][place].tolist() == [
                i < length for i in range(batch["mask"].shape[1])
            ]
            assert (batch["ids"][place] == (row + 1) * batch["mask"][place]).all()
            assert batch["y"][place] == (row if place < count else 0)
        assert (batch["index"][count:] == -1).all()
    assert count == 23 % 4


def test_shapes_are_the_least_buckets():
    data = encoded()
    widths = set()
    for [batch] in Batches(data, 4, group_by_length=True).epoch(0):
        longest = batch["mask"].sum(1).max()
        assert batch["ids"].shape == batch["mask"].shape
        assert len(batch["ids"]) == 4 and batch["y"].shape == (4,)
        widths.add(batch["ids"].shape[1])
        assert batch["ids"].shape[1] == min(b for b in (*BUCKETS, 40) if b >= longest)
    assert len(widths) > 1 and widths <= {8, 16, 24, 32, 40}
    [[batch], *_] = Batches(data, 4, buckets=()).epoch(0)
    assert batch["ids"].shape == (4, 40)  # the longest that may occur


def test_texts_of_like_length_are_together():
    def padding(grouped):
        made = Batches(encoded(200), 4, group_by_length=grouped)
        return sum((~batch["mask"]).sum() for [batch] in made.epoch(0))

    assert padding(True) < 0.5 * padding(False)


@pytest.mark.parametrize("micro", [1, 2, 3, 4])
def test_micro_batches_part_a_step(micro):
    made = Batches(encoded(), 4)
    for whole, parts in zip(made.epoch(1), made.epoch(1, micro=micro), strict=True):
        assert len(parts) == micro
        rows = [row for part in parts for row in part["index"][: part["n_valid"]]]
        assert rows == whole[0]["index"][: whole[0]["n_valid"]].tolist()
        assert {len(part["y"]) for part in parts} == {-(-4 // micro)}
    assert {part["n_valid"] for part in parts} != {len(parts[0]["y"])}  # the last step


def test_skipped_steps_are_left_out():
    made = Batches(encoded(), 4, seed=1)
    whole = [batch["index"].tolist() for [batch] in made.epoch(2)]
    assert [b["index"].tolist() for [b] in made.epoch(2, skip=2)] == whole[2:]


def test_towers_follow_one_another():
    data = encoded(towers=2)
    [[batch], *_] = Batches(data, 4).epoch(0)
    assert batch["ids"].shape[0] == 8 and batch["y"].shape == (4,)
    for place, row in enumerate(batch["index"]):
        lengths = [len(tower[row]) for tower in data.ids]
        assert batch["mask"][[place, place + 4]].sum(1).tolist() == lengths


def test_types_are_padded_like_ids(tokenizer):
    table = toy(rows=6, pairs=True)
    [[batch], *_] = Batches(tokenizer.encode(table), 4).epoch(0)
    assert set(model_inputs(batch)) == {"ids", "mask", "types"}
    assert batch["types"].shape == batch["ids"].shape
    assert not (batch["types"] & ~batch["mask"]).any()
    assert (batch["types"].max(1) == 1).all()


def test_a_batch_has_a_row():
    with pytest.raises(ValueError, match="batch_size=0"):
        Batches(encoded(), 0)


def test_fixed_batches_come_again_in_another_order():
    made = Batches(encoded(), 4, seed=3, fixed=True)
    epochs = [[name_of(batch) for [batch] in made.epoch(e)] for e in range(3)]
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert len(set(epochs[0])) == made.steps_per_epoch()
    assert epochs[0] != epochs[1] != epochs[2]
    free = Batches(encoded(), 4, seed=3)
    assert [name_of(batch) for [batch] in free.epoch(0)] == epochs[0]
    assert not set(epochs[0]) & {name_of(batch) for [batch] in free.epoch(1)}
