"""What codecs replaced is told on the edge, whoever sent it, and costs no byte else."""

import numpy as np

from tests.runtime.conftest import ROUGH, Model, batches


def test_an_edge_is_told_what_a_cloud_replaced(here):
    """As one process would; a count of none crosses in no ack."""
    model, [good] = Model(link=ROUGH), batches(1)
    [bad] = batches(1)
    bad[0]["target"]["y"][2] = 3e38  # finite, as frames must be; its gradient is not
    driver = model.local()
    run = driver.start(model.params, model.state, model.x)
    run, _ = driver.step(run, good)
    _, want = driver.step(run, bad)
    assert want["link_0/backward_nonfinite"] == 8 * 8  # by the norm, of all rows

    both, name = here(model), "link_0/backward_nonfinite"
    edge = model.edge(both.dial)
    run = edge.start(model.params, model.state, model.x)
    run, clean = edge.step(run, good)
    assert name not in clean and clean["link_0/nonfinite"] == 0
    _, found = edge.step(run, bad)
    assert found[name] == 8 * 8 and np.isinf(found["loss"])
    edge.close()
