import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from splitjax.parallel.mesh import (
    Disagreement,
    check_agreement,
    compare,
    join_processes,
    make_cloud_mesh,
)


def test_axes_are_auto_and_in_the_order_of_the_text():
    mesh = make_cloud_mesh("data=2,pipe=2,tensor=2")
    assert dict(mesh.shape) == {"data": 2, "pipe": 2, "tensor": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 3
    ids = [device.id for device in mesh.devices.flat]
    assert ids == list(range(8))  # neighbors on the last axis are neighbors


def test_a_mesh_of_some_devices():
    mesh = make_cloud_mesh("tensor=3", devices=jax.devices()[2:5])
    assert [device.id for device in mesh.devices.flat] == [2, 3, 4]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data=2,tensor=2", "of 4 devices, and there are 8"),
        ("data=3,tensor=4", "of 12 devices, and there are 8"),
        ("data=8,", "'' is not an axis and its size"),
        ("", "'' is not an axis and its size"),
        ("data=0,tensor=8", "'data=0' is not an axis and its size"),
        ("data=-8", "'data=-8' is not an axis and its size"),
        ("data:8", "'data:8' is not an axis and its size"),
        ("tensr=8", "did you mean 'tensor'"),
        ("data=2,data=4", "names the axis 'data' twice"),
    ],
)
def test_g_a_text_that_is_no_mesh(text, says):
    with pytest.raises(ValueError, match=says):
        make_cloud_mesh(text)


def test_one_process_agrees_with_itself_and_unlike_digests_are_named():
    check_agreement({"rank": 8, "mesh": "data=8"})
    digests = np.zeros((4, 32), np.uint8)
    compare(digests)
    digests[[1, 3], 31] = 1
    with pytest.raises(Disagreement, match="process 1, 3 is not that of process 0"):
        compare(digests)


def test_g_processes_that_cannot_meet():
    with pytest.raises(ValueError, match="numbers run from 0 to 1"):
        join_processes("127.0.0.1:1", processes=2, number=-1)
    with pytest.raises(ValueError, match="expected 'host:port'"):
        join_processes("127.0.0.1", processes=2, number=1)
    with pytest.raises(TimeoutError, match="does not listen at 127.0.0.1:1 after 0 s"):
        join_processes("127.0.0.1:1", processes=2, number=1, timeout_seconds=0)
