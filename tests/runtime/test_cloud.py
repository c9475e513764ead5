"""Clouds that share their slots' folders, as behind a load balancer."""

import threading

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
