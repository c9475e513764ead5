"""Rows of examples: kept by id, saved and restored whole, whatever a crash leaves."""

import numpy as np
import pytest

from splitjax.core.memory import Memory
from splitjax.storage import row_file
from splitjax.storage.row_file import RowError
from splitjax.storage.rows import BadIds, Rows

WAYS = {"memory": False, "map": True}


def like(count, *, steps=0, width=3):
    """Two arrays: one with a row an example, one with tokens where there are steps."""
    plain = np.zeros((count, width), np.float32)
    tokens = np.zeros((count, steps, 2), np.float16)
    empty = np.zeros((3, count), np.int32)
    return Memory((plain, tokens), *empty, tokens=(False, True))


def filled(ids, value, *, steps=4, lengths=None):
    count = len(ids)
    lengths = np.full(count, 2, np.int32) if lengths is None else np.array(lengths)
    made = like(count, steps=steps)
    made.rows[0][...] = value
    made.rows[1][np.arange(steps) < lengths[:, None]] = value
    return Memory(made.rows, lengths, np.ones(count, bool), lengths, made.tokens)


def read(rows, ids, steps=4):
    """The first number of each example, and whether it was seen; put back at once."""
    memory = rows.gather(np.array(ids), like(len(ids), steps=steps))
    rows.put(ids, memory)
    return [
        float(a[0]) if s else None
        for a, s in zip(memory.rows[0], memory.seen, strict=True)
    ]


def test_an_example_has_its_own_tokens_whatever_the_padding():
    rows = Rows(9)
    rows.put([5, 2], filled([5, 2], 1.5, lengths=[3, 1]))
    assert rows.nbytes == 2 * 12 + (3 + 1) * 4
    memory = rows.gather([2, 5], like(2, steps=7))
    assert memory.lengths.tolist() == [1, 3] and memory.visits.tolist() == [1, 3]
    assert (memory.rows[1][:, :, 0] > 0).sum(1).tolist() == [1, 3]


def test_more_tokens_than_the_batch_has_are_another_text():
    rows = Rows(9)
    rows.put([5], filled([5], 1.0, lengths=[4]))
    memory = rows.gather([5], like(1, steps=3))
    assert memory.lengths.tolist() == [4] and not memory.rows[1].any()


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([1, 2, 1], r"\[1\] are in one batch twice"),
        ([9], r"\[9\] are not from 0 to 8"),
        ([-2], r"\[-2\] are not from 0 to 8"),
    ],
)
def test_ids_that_cannot_be_looked_up_are_named(ids, text):
    with pytest.raises(BadIds, match=text):
        Rows(9).gather(ids, like(len(ids)))


def test_an_example_is_in_one_batch_at_a_time():
    rows = Rows(9)
    memory = rows.gather([1, -1, -1], like(3))
    with pytest.raises(BadIds, match=r"\[1\] are in two batches"):
        rows.gather([2, 1], like(2))
    rows.put([1, -1, -1], memory)
    rows.gather([2, 1], like(2))


def test_another_shape_of_row_is_refused_with_the_way_out():
    def plain(width):
        return Memory(
            (np.ones((1, width), np.float32),), *np.ones((3, 1), np.int32), (False,)
        )

    rows = Rows(9)
    rows.put([1], plain(3))
    with pytest.raises(ValueError, match="example 1 .*need ragged"):
        rows.gather([1], plain(4))


def test_what_parted_is_forgotten_and_told():
    rows = Rows(9)
    rows.put([1, 2], filled([1, 2], 1.0))
    memory = filled([1, 2], 2.0)
    memory.seen[0] = False
    assert rows.put([1, 2], memory) == [1]
    assert read(rows, [1, 2]) == [None, 2.0] and list(rows) == [2]


@pytest.mark.parametrize("mapped", WAYS.values(), ids=WAYS)
def test_a_checkpoint_is_what_restore_goes_back_to(mapped, tmp_path):
    rows = Rows(9, tmp_path, step=0, mapped=mapped)
    rows.put([1, 2], filled([1, 2], 1.0))
    rows.save(4)
    rows.settle(4)
    rows.put([2, 3], filled([2, 3], 2.0))
    rows.forget([1])
    assert read(rows, [1, 2, 3]) == [None, 2.0, 2.0]
    rows.restore(4)
    assert read(rows, [1, 2, 3]) == [1.0, 1.0, None]
    rows.prefetch([1, 2, -1])
    rows.put([2], filled([2], 3.0, lengths=[4]))  # a larger row, in a new place
    assert read(rows, [1, 2]) == [1.0, 3.0]
    rows.save(8)
    rows.settle(8)
    again = Rows(9, tmp_path, step=8, mapped=mapped)
    assert read(again, [1, 2, 3]) == [1.0, 3.0, None]
    assert list(again) == [1, 2] and again.nbytes == rows.nbytes


@pytest.mark.parametrize("mapped", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("crash", ["before the commit", "after it", "within it"])
def test_a_crash_leaves_one_checkpoint_or_the_other(
    crash, mapped, tmp_path, monkeypatch
):
    rows = Rows(9, tmp_path, step=0, mapped=mapped)
    rows.put([1, 2], filled([1, 2], 1.0))
    rows.save(4)
    rows.settle(4)
    rows.put([2, 3], filled([2, 3], 2.0))
    rows.save(8)
    if crash == "within it":
        with monkeypatch.context() as patch, pytest.raises(OSError, match="power"):
            # All of the data is written, the index is not.
            patch.setattr(
                row_file, "whole", lambda *_: (_ for _ in ()).throw(OSError("power"))
            )
            rows.settle(8)
    step = 4 if crash == "before the commit" else 8
    want = [1.0, 1.0, None] if step == 4 else [1.0, 2.0, 2.0]
    for _ in range(2):
        again = Rows(9, tmp_path, step=step, mapped=mapped)
        assert read(again, [1, 2, 3]) == want


def test_rows_of_another_checkpoint_are_refused(tmp_path):
    rows = Rows(9, tmp_path, step=0)
    rows.put([1], filled([1], 1.0))
    rows.save(4)
    rows.settle(4)
    with pytest.raises(RowError, match="rows of step 4, the checkpoint is of step 2"):
        Rows(9, tmp_path, step=2)


def test_what_lies_on_disk_is_the_owners_alone(tmp_path):
    rows = Rows(9, tmp_path, step=0)
    rows.put([1], filled([1], 1.0))
    rows.save(4)
    assert [p.stat().st_mode & 0o77 for p in tmp_path.iterdir()] == [0]
    rows.settle(4)
    assert [p.stat().st_mode & 0o77 for p in tmp_path.iterdir()] == [0, 0]


def test_a_map_needs_a_folder():
    with pytest.raises(ValueError, match="need a folder"):
        Rows(9, mapped=True)
