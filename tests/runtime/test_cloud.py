"""Clouds that share their slots' folders, as behind a load balancer, and their end."""

import threading

import pytest

from splitjax.runtime import control
from splitjax.runtime.channel import Closed, pipe
from splitjax.runtime.schema import Schema
from tests.runtime.conftest import ROUGH, Here, Model, batches, run_all, same


def test_an_edge_goes_on_at_another_cloud_when_its_lease_is_over(here):
    model = Model(link=ROUGH)
    steps = batches(4)
    local = model.local()
    start = local.start(model.params, model.state, model.x)
    want, losses = run_all(local, start, steps)

    one = here(model)
    other = Here(model, one.folder)
    refused = threading.Event()
    dialed = []

    def dial():
        dialed.append(other if len(dialed) else one)
        if len(dialed) == 3:  # it was refused by the other one, and dials again
            refused.set()
            one.cloud.close()  # as at the end of the lease: the slot is let go
        return dialed[-1].dial()

    edge = model.edge(dial)
    run = edge.start(model.params, model.state, model.x)
    run, first = run_all(edge, run, steps[:2])
    one.channels[-1].close()
    run, rest = run_all(edge, run, steps[2:])
    assert refused.is_set() and first + rest == losses
    same(run.edge, want.edge)
    edge.close()
    other.close()  # its session is over, so what it says of itself is final
    status = other.cloud.status()[0]
    assert status.step == 4 and status.refused == 1 and "another cloud" in status.last


SECONDS = 30.0


def test_who_waited_for_a_slot_while_the_cloud_closed_is_turned_away(here):
    """Else a session begins that `close` does not know of, and waits for, or leaves."""
    model = Model()
    both = here(model)
    hello = {**model.edge(both.dial)._outbox._hello, "fresh": True, "resumed": False}
    hello |= {"tick": 0, "batch": Schema.of({"x": model.x}).to_bytes()}
    [place] = both.cloud._places
    place.busy.acquire()  # as the last session of the same edge, at a long step
    place.lease = hello["lease"]
    place.channel, theirs = pipe()
    late = both.dial()
    late.send(control.write("hello", **hello))
    with pytest.raises(Closed):
        theirs.receive(SECONDS)  # the new session takes over, and waits
    closing = threading.Thread(target=both.cloud.close)
    closing.start()
    while not both.cloud._closing:
        pass
    place.busy.release()
    kind, fields = control.read(late.receive(SECONDS))
    assert (kind, fields.get("code")) == ("refused", "closing")
    closing.join(SECONDS)
    assert not closing.is_alive() and place.slot is None
