"""An edge and a cloud are one run: in any shape, with any codec, whatever happens."""

from typing import NamedTuple

import jax
import pytest

from splitjax.codecs import chain, lossless, quantize
from splitjax.core.codec import Link
from splitjax.runtime import control, frame
from splitjax.runtime.channel import Closed
from splitjax.runtime.control import Refused
from splitjax.storage.frames import Frames
from tests.runtime.conftest import (
    IDENTITY,
    REMEMBER,
    ROUGH,
    STATEFUL,
    Model,
    batches,
    remembered,
    rows_of,
    run_all,
    same,
)

CODED = Link(chain(quantize(2, mode="symmetric"), lossless()), lossless())
SHAPES = {
    "plain": dict(),
    "labels on the edge": dict(places=("dense_0", "head")),
    "u": dict(places=("dense_0", "dense_1")),
    "four": dict(places=("dense_0", "dense_1", "dense_2")),
    "rough": dict(link=ROUGH),
    "stateful": dict(link=STATEFUL),
    "stateful u": dict(link=STATEFUL, places=("dense_0", "head")),
    "exact norm": dict(clip=0.1, places=("dense_0", "head"), link=ROUGH),
    "micro": dict(micro=3, link=STATEFUL, clip=0.1),
    "frozen": dict(frozen=1, micro=2, link=ROUGH),
    "slot 1": dict(slot=1, link=ROUGH),
    "remember": dict(link=REMEMBER),
    "remember micro": dict(link=REMEMBER, micro=3, clip=0.1),
    "remember u": dict(link=REMEMBER, places=("dense_0", "dense_1")),
    "coded": dict(link=CODED, width=64),
}


class Alone(NamedTuple):
    """What one process makes of a run, and what the codecs remember at its end."""

    edge: dict
    slot: dict
    rows: list


def alone(model, steps, **kwargs):
    driver = model.local()
    start = driver.start(model.params, model.state, model.x)
    run, losses = run_all(driver, start, steps, **kwargs)
    rows = [rows_of(memories) for memories in driver.memories]
    return Alone(run.edge, run.slot, rows), losses, driver.predict(run, model.x)


@pytest.mark.parametrize("name", SHAPES)
def test_an_edge_and_a_cloud_are_one_run_to_the_bit(name, here):
    model = Model(**SHAPES[name])
    steps = batches(4, micro=model.micro)
    want, losses, out = alone(model, steps)
    both = here(model, slots=2)
    edge = model.edge(lambda: both.dial(model.slot))
    start = edge.start(model.params, model.state, model.x)
    run, found = run_all(edge, start, steps, in_flight=model.micro)
    assert found == losses
    same(run.edge, want.edge)
    same(edge.predict(run, model.x), out)
    slot = both.cloud._places[model.slot].slot
    same(slot.lane.state[1], want.slot)
    assert remembered(edge, both) == want.rows
    assert "remember" not in name or want.rows[0] == want.rows[1] != {}
    edge.close()


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("name", ["stateful u", "coded"])
def test_outputs_that_are_under_way_together_are_those_one_by_one(name, crash, here):
    """Whatever happens meanwhile; the next is sent before an answer is waited for."""
    model = Model(**SHAPES[name])
    inputs = [model.x, model.x / 2, -model.x, model.x]  # equal ones, other noise
    driver = model.local()
    run = driver.start(model.params, model.state, model.x)
    want = [driver.predict(run, x) for x in inputs]
    driver = model.local()
    run = driver.start(model.params, model.state, model.x)
    same(list(driver.predict_each(run, inputs, in_flight=3)), want)
    both = here(model)
    edge = model.edge(both.dial)
    run = edge.start(model.params, model.state, model.x)
    asked = []

    def given():
        for x in inputs:
            asked.append(edge.meter.totals(kind="predict"))
            if crash and len(asked) == 3:
                both.crash()
            yield x

    same(list(edge.predict_each(run, given(), in_flight=3)), want)
    assert [one["bytes_down"] for one in asked[:3]] == [0, 0, 0]
    assert 0 < asked[1]["bytes_up"] < asked[2]["bytes_up"]
    edge.close()


@pytest.mark.parametrize(
    "name", ["stateful u", "micro", "frozen", "coded", "remember micro"]
)
def test_a_cloud_that_crashes_at_any_tick_changes_nothing(name, here):
    model = Model(**SHAPES[name])
    steps = batches(5, micro=model.micro)
    want, losses, out = alone(model, steps)
    both = here(model)
    edge = model.edge(both.dial)
    run = edge.start(model.params, model.state, model.x)
    found = []
    for number, step in enumerate(steps):
        run, metrics = edge.step(run, step, in_flight=model.micro)
        found.append(float(metrics["loss"]))
        if number == 1:
            edge.saving(run)
            edge.saved(run)
        if number in (0, 2, 3):
            both.crash()
    assert found == losses
    same(run.edge, want.edge)
    same(edge.predict(run, model.x), out)
    assert remembered(edge, both) == want.rows
    edge.close()


def test_the_meter_counts_what_was_coded(here):
    """As many bytes on both ends, and fewer than the bound."""
    sent = {}
    for coder in (chain(), lossless()):
        link = Link(chain(quantize(2, mode="symmetric"), coder), coder)
        model = Model(link=link, width=64)
        both = here(model)
        edge = model.edge(both.dial)
        start = edge.start(model.params, model.state, model.x)
        run_all(edge, start, batches(2))
        sent[coder.name] = edge.meter.totals(kind="train")
        assert both.cloud.meter.totals(kind="train") == sent[coder.name]
        edge.close()
    for way in ("bytes_up", "bytes_down"):
        assert sent["lossless(1)"][way] < sent["identity"][way]


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(
    ("name", "too"),
    [
        *(("stateful u", False), ("micro", False), ("frozen", False)),
        *(("remember micro", False), ("remember u", True)),
    ],
)
def test_an_edge_that_is_killed_begins_at_its_checkpoint(
    name, too, fresh, here, tmp_path
):
    """Also where the cloud is killed, too."""
    model = Model(**SHAPES[name])
    steps = batches(5, micro=model.micro)
    want, losses, out = alone(model, steps)
    both = here(model)
    own = dict(folder=tmp_path / "edge", mapped=True)
    edge = model.edge(both.dial, **own)
    run = edge.start(model.params, model.state, model.x)
    at = 0 if fresh else 2
    run, _ = run_all(edge, run, steps[:at])
    if not fresh:
        kept = jax.device_get(run.edge)
        edge.saving(run)
        edge.saved(run)
    run_all(edge, run, steps[at:4])
    both.channels[-1].close()  # killed, in the middle of a run
    if too:
        both.crash()

    edge = model.edge(both.dial, **own)
    tick = None if fresh else run.tick
    start = edge.start(model.params, model.state, model.x, tick=tick)
    start = (
        start if fresh else start._replace(edge=jax.tree.map(jax.numpy.asarray, kept))
    )
    run, found = run_all(edge, start, steps[at:], in_flight=model.micro)
    assert found == losses[at:]
    same(run.edge, want.edge)
    same(edge.predict(run, model.x), out)
    assert remembered(edge, both) == want.rows
    edge.close()


@pytest.mark.parametrize("killed", [False, True])
def test_an_evaluation_that_is_given_up_changes_nothing(killed, here):
    """By the user, or as the edge dies in it: answers that come late are nobody's."""
    model = Model(**SHAPES["stateful u"])
    steps = batches(3)
    want, losses, out = alone(model, steps)
    both = here(model)
    edge = model.edge(both.dial)
    run = edge.start(model.params, model.state, model.x)
    run, found = run_all(edge, run, steps[:1])
    kept = jax.device_get(run.edge)
    edge.saved(run)
    outputs = edge.predict_each(run, [model.x, -model.x, model.x / 2], in_flight=3)
    next(outputs)
    outputs.close()
    if killed:
        both.channels[-1].close()
        edge = model.edge(both.dial)
        run = edge.start(model.params, model.state, model.x, tick=run.tick)
        run = run._replace(edge=jax.tree.map(jax.numpy.asarray, kept))
    run, rest = run_all(edge, run, steps[1:])
    assert found + rest == losses
    same(run.edge, want.edge)
    same(edge.predict(run, model.x), out)
    edge.close()


class Faulty:
    """A channel that does something to each message that is sent."""

    def __init__(self, channel, fault):
        self.channel, self.fault, self.count = channel, fault, 0
        self.receive, self.close = channel.receive, channel.close
        self.early = None
        self.sent: list = []  # place and bytes of each frame

    def send(self, message):
        self.count += 1
        if not control.is_control(message):
            header = frame.peek(message)
            self.sent.append(((header.tick, header.hop), message))
        if self.fault == "twice" and message[:4] == b"spJX":
            self.channel.send(message)
        if self.fault == "cut" and self.count % 7 == 6:
            self.channel.close()
            raise Closed("cut")
        if self.fault == "swapped" and message[:4] == b"spJX" and self.early is None:
            self.early = message
            return
        self.channel.send(message)
        if self.early is not None:
            self.channel.send(self.early)
            self.early = None


@pytest.mark.parametrize("fault", ["twice", "cut", "swapped"])
@pytest.mark.parametrize("name", ["stateful u", "micro", "remember micro"])
def test_messages_twice_cut_or_out_of_order_change_nothing(name, fault, here):
    """A retried message is re-sent, not re-encoded."""
    if fault == "swapped" and "micro" not in name:
        pytest.skip("one message at a time has no order")
    even = {"micro": 4, "clip": 0.0} if fault == "swapped" else {}
    model = Model(**{**SHAPES[name], **even})
    steps = batches(4, micro=model.micro)
    want, losses, _ = alone(model, steps)
    both = here(model)
    channels = []

    def dial():
        channels.append(Faulty(both.dial(), fault))
        return channels[-1]

    edge = model.edge(dial)
    start = edge.start(model.params, model.state, model.x)
    run, found = run_all(edge, start, steps, in_flight=model.micro)
    assert found == losses
    same(run.edge, want.edge)
    assert remembered(edge, both) == want.rows
    sent = [one for channel in channels for one in channel.sent]
    # Again the same bytes: nothing is encoded twice.
    assert len(set(sent)) == len({place for place, _ in sent})
    assert fault != "cut" or len(sent) > len(set(sent))
    edge.close()


def test_what_a_frozen_edge_sent_is_kept_and_named(here, tmp_path):
    model = Model(frozen=1, link=ROUGH)
    steps = batches(3)
    names = [[f"{number:032x}"] for number in range(3)]
    local = model.local()
    local.keep(Frames(tmp_path / "local"))
    run = local.start(model.params, model.state, model.x)
    both = here(model)
    edge = model.edge(both.dial)
    edge.keep(Frames(tmp_path / "edge"))
    other = edge.start(model.params, model.state, model.x)
    sent = []
    for number in (0, 1, 2, 1, 0):
        run, want = local.step(run, steps[number], names=names[number])
        other, found = edge.step(other, steps[number], names=names[number])
        assert float(found["loss"]) == float(want["loss"])
        sent.append(edge.meter.totals(kind="train")["bytes_up"])
        if number == 2:
            both.crash()
    assert sent[0] < sent[2] == sent[3] == sent[4]
    edge.close()


def test_two_edges_do_not_know_of_each_other(here):
    models = [Model(link=ROUGH), Model(link=ROUGH, slot=1)]
    steps = batches(3)
    both = here(models[0], slots=2)
    edges = [m.edge(lambda m=m: both.dial(m.slot)) for m in models]
    runs = [e.start(m.params, m.state, m.x) for e, m in zip(edges, models, strict=True)]
    for step in steps:
        runs = [e.step(r, step)[0] for e, r in zip(edges, runs, strict=True)]
    for model, run in zip(models, runs, strict=True):
        same(run.edge, alone(model, steps)[0].edge)
    for edge in edges:
        edge.close()


def test_another_config_is_named(here):
    model = Model()
    both = here(model)
    edge = model.edge(both.dial, config={"rank": 16})
    with pytest.raises(Refused, match="rank: 16 at the edge, 8 here") as caught:
        edge.start(model.params, model.state, model.x)
    assert caught.value.code == "config"


def test_an_edge_that_lost_its_disk_is_told_so(here):
    model = Model(link=IDENTITY)
    both = here(model)
    edge = model.edge(both.dial)
    run, _ = run_all(edge, edge.start(model.params, model.state, model.x), batches(2))
    edge.saved(run)
    edge.close()
    edge = model.edge(both.dial)
    with pytest.raises(Refused, match="no state in common") as caught:
        edge.start(model.params, model.state, model.x)
    assert caught.value.code == "stale"


def test_a_slot_is_leased_to_one_process(here):
    model = Model()
    both = here(model)
    edge = model.edge(both.dial)
    edge.start(model.params, model.state, model.x)
    other = model.edge(both.dial, patience_seconds=0.1)
    with pytest.raises(ConnectionError, match="leased to another process"):
        other.start(model.params, model.state, model.x)
    edge.close()
