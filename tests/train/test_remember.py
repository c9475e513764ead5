"""A run whose codec remembers examples: interrupted, resumed, counted, warned of."""

import jax
import numpy as np
import pytest

from splitjax.runtime.local import Local
from splitjax.storage import log
from splitjax.train import loop, runs

DELTA = "ragged() + delta(quantize(2, axis='channel', power_of_two=True), check=2)"
REMEMBER = dict(
    epochs=3, micro=2, forward=DELTA, backward_bits=4, edge_dropout=False, eval_every=1
)


@pytest.fixture(scope="module")
def whole(options, watch, tmp_path_factory):
    return watch(options(**REMEMBER), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "mapped",
    [pytest.param(False, marks=pytest.mark.slow, id="memory"), True],
)
def test_a_run_goes_on_where_it_stopped(
    mapped, whole, options, watch, tmp_path, power_cut
):
    """In the second epoch, where changes are sent, beyond a checkpoint of the rows."""
    given = options(**REMEMBER, checkpoint_every=2, map_rows=mapped)
    with power_cut(5):
        watch(given, tmp_path)
    resumed = watch(given, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed.end, whole.end)
    assert log.read(tmp_path) == log.read(whole.folder)
    one, other = ({**s.summary, "seconds": 0} for s in (resumed, whole))
    assert one == other


def test_after_the_first_epoch_less_is_sent(whole):
    """In a summary: what one end remembers, beside the bytes of the wire."""
    lines = [line for line in log.read(whole.folder) if "loss" in line]
    ups = np.diff([0, *(line["up"] for line in lines)])
    per_epoch = ups.reshape(3, -1).sum(1)
    # Tiny messages: headers, ids and one grid a channel are half of what is left.
    assert per_epoch[0] > 1.5 * per_epoch[1]
    assert per_epoch[1] == per_epoch[2] + 4 * 24  # digests, at every second visit
    tokens = whole.summary["tokens"] / 3
    width = 4  # of the code
    assert whole.summary["state_bytes"] == tokens * width * 4


def test_ids_of_two_towers_are_apart():
    batch = {"ids": np.zeros((6, 8)), "index": np.array([4, 0, -1])}
    assert loop.row_ids(batch).tolist() == [8, 0, -1, 9, 1, -1]
    image = {"image": np.zeros((2, 4, 4, 1)), "index": np.array([5, 7])}
    assert loop.row_ids(image).tolist() == [5, 7]


def test_dropout_at_the_edge_is_warned_of(options, tmp_path, caplog):
    for more, warned in (
        ({}, True),
        ({"edge_dropout": False}, False),
        ({"frozen_edge": True}, False),
    ):
        caplog.clear()
        folder = tmp_path / str(len(more)) / str(warned) / "".join(more)
        run = runs.open_run(options(**{"forward": DELTA, **more}), 0, folder)
        assert isinstance(run.driver, Local) and run.driver.remembers
        assert ("nothing settles" in caplog.text) == warned


def test_examples_that_never_come_again_are_warned_of(options, tmp_path, caplog):
    for epochs, forward, warned in (
        (1, DELTA, True),
        (2, DELTA, False),
        (1, "", False),
    ):
        caplog.clear()
        given = options(**({"forward": forward} if forward else {}), epochs=epochs)
        runs.open_run(given, 0, tmp_path / f"{epochs}{bool(forward)}")
        assert ("none comes again" in caplog.text) == warned
