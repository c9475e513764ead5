"""What codecs remember of examples, at both ends of a run. See also test_edge.py."""

import jax
import numpy as np
import pytest

from splitjax.runtime.control import Refused
from splitjax.storage.row_file import Row
from tests.runtime.conftest import (
    REMEMBER,
    Model,
    batches,
    remembered,
    rows_of,
    run_all,
)

LINK = "link/0/forward"
EXAMPLE = 3  # it is in steps 0, 2 and 4


@pytest.fixture(scope="module")
def model():
    return Model(link=REMEMBER)


def begin(model, both, **kwargs):
    edge = model.edge(both.dial, **kwargs)
    return edge, edge.start(model.params, model.state, model.x)


def lane_of(both):
    return both.cloud._places[0].slot.lane


def test_a_row_that_was_damaged_is_found_and_sent_whole_again(model, here):
    """At the cloud: its digest tells, the ack says which, and both ends forget it."""
    steps, both = batches(5), here(model)
    edge, run = begin(model, both)
    run, _ = run_all(edge, run, steps[:2])
    [rows] = lane_of(both).memories._rows[LINK]
    row = rows[EXAMPLE]
    rows._new[EXAMPLE] = Row(row.data ^ (np.arange(row.data.size) == 3), *row[1:])
    run, _ = run_all(edge, run, steps[2:4])
    assert int(lane_of(both).state[1][LINK]["parted"]) == 1
    assert EXAMPLE not in rows and EXAMPLE not in edge.memories._rows[LINK][0]
    run, _ = run_all(edge, run, steps[4:])
    ends = remembered(edge, both)
    assert ends[0] == ends[1] and (LINK, 0, EXAMPLE) in ends[0]
    edge.close()


def test_one_process_tells_itself_which_rows_were_lost(model):
    driver, steps = model.local(), batches(5)
    run = driver.start(model.params, model.state, model.x)
    run, _ = run_all(driver, run, steps[:2])
    driver.memories[1].forget([EXAMPLE])
    run, _ = run_all(driver, run, steps[2:])
    assert rows_of(driver.memories[0]) == rows_of(driver.memories[1])
    assert int(run.slot[LINK]["parted"]) == 1


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([0, 0, 1, 2, 3, 4, 5, 6], "in one batch twice"),
        ([0, 1, 2, 3, 4, 5, 6, 40], "not from 0 to 39"),
    ],
)
def test_ids_that_cannot_be_are_refused_at_both_ends(ids, text, model, here):
    """The edge raises; a cloud that is sent them all the same changes nothing."""
    [[batch]], both = batches(1), here(model)
    bad = {**batch, "ids": np.array(ids, np.int32)}
    edge, run = begin(model, both)
    with pytest.raises(ValueError, match=text):
        edge.step(run, [bad])
    for rows in edge.memories._rows[LINK]:  # an edge that does not look
        rows.check = lambda ids, **_: np.asarray(ids)
    with pytest.raises(Refused, match=text) as caught:
        edge.step(run, [bad])
    assert caught.value.code == "ids"
    lane = lane_of(both)
    assert lane.tick == 0 and not lane.begun and not rows_of(lane.memories)


def test_an_example_is_once_in_a_step(here):
    model = Model(link=REMEMBER, micro=2)
    [step] = batches(1, micro=2)
    driver = model.local()
    run = driver.start(model.params, model.state, model.x)
    with pytest.raises(ValueError, match="two batches of one step"):
        driver.step(run, [step[0], step[0]])


def test_without_ids_a_run_says_what_is_missing(model, here):
    batch = {k: v for k, v in batches(1)[0][0].items() if k != "ids"}
    driver = model.local()
    run = driver.start(model.params, model.state, model.x)
    with pytest.raises(ValueError, match="a batch has 'ids'"):
        driver.step(run, [batch])
    edge, run = begin(model, here(model))
    with pytest.raises(ValueError, match="whose rows it sends"):
        edge.step(run, [batch])


def test_a_first_message_that_rows_decide_cannot_be_kept(here):
    model = Model(link=REMEMBER, frozen=1)
    driver = model.local()
    driver.start(model.params, model.state, model.x)
    edge, _ = begin(model, here(model))
    for one in (driver, edge):
        with pytest.raises(ValueError, match="remembers examples"):
            one.keep(None)
    edge.close()


def test_a_run_without_memories_does_not_trace_ids():
    """So its programs, its announced shapes and its bytes are what they were."""
    model = Model()
    driver = model.local()
    assert driver.start(model.params, model.state, model.x)
    assert "ids" not in driver._named(batches(1)[0][0])


def test_what_is_remembered_is_counted(model):
    driver = model.local()
    run = driver.start(model.params, model.state, model.x)
    run, _ = run_all(driver, run, batches(3))
    assert driver.state_bytes == 10 * 8 * 4
    leaves = jax.tree.leaves((run.edge, run.slot))
    assert not any(a.shape[:1] == (8,) and a.dtype == bool for a in leaves)


def test_a_prediction_leaves_the_rows_alone(model):
    driver = model.local()
    run = driver.start(model.params, model.state, model.x)
    run, _ = run_all(driver, run, batches(2))
    before = [rows_of(memories) for memories in driver.memories]
    driver.predict(run, model.x)
    assert [rows_of(memories) for memories in driver.memories] == before
