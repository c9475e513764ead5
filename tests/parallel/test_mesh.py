import socket

import jax
import pytest
from jax.sharding import AxisType

from splitjax.core.job import Disagreement
from splitjax.parallel import check_agreement, join_processes, make_cloud_mesh, mesh
from splitjax.parallel.mesh import compare, parse, text_of


def test_axes_are_auto_and_in_the_order_of_the_text():
    made = make_cloud_mesh("data=2,pipe=2,tensor=2")
    assert dict(made.shape) == {"data": 2, "pipe": 2, "tensor": 2}
    assert made.axis_types == (AxisType.Auto,) * 3
    assert parse(text_of(made.shape)) == dict(made.shape)
    ids = [device.id for device in made.devices.flat]
    assert ids == list(range(8))  # neighbors on the last axis are neighbors


def test_a_mesh_of_some_devices():
    made = make_cloud_mesh("tensor=3", devices=jax.devices()[2:5])
    assert [device.id for device in made.devices.flat] == [2, 3, 4]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data=2,tensor=2", "of 4 devices, and there are 8"),
        ("data=3,tensor=4", "of 12 devices, and there are 8"),
        ("data=16", "on a CPU set JAX_NUM_CPU_DEVICES=16"),
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


def test_one_process_agrees_with_itself_and_unlike_configs_are_named():
    check_agreement({"rank": 8, "mesh": "data=8"})
    configs = [{"rank": 8, "seed": 0}] * 4
    compare(configs)
    configs[1] = configs[3] = {"rank": 8, "seed": 1}
    with pytest.raises(Disagreement, match="process 1, 3 is not that of process 0"):
        compare(configs)


def test_g_processes_that_cannot_meet():
    with pytest.raises(ValueError, match="numbers run from 0 to 1"):
        join_processes("127.0.0.1:1", processes=2, number=-1)
    with pytest.raises(ValueError, match="expected 'host:port'"):
        join_processes("127.0.0.1", processes=2, number=1)
    with pytest.raises(TimeoutError, match="does not listen at 127.0.0.1:1 after 0 s"):
        join_processes("127.0.0.1:1", processes=2, number=1, timeout_seconds=0)


def test_a_process_joins_once_process_0_listens(monkeypatch):
    """JAX itself is not asked: it would make this process one of a job."""
    asked = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **how: asked.append((args, how))
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        join_processes(address, processes=2, number=1, timeout_seconds=9)
        server.settimeout(0)
        server.accept()[0].close()  # it was called before JAX was
    [(args, how)] = asked
    assert args == (address,) and (how["num_processes"], how["process_id"]) == (2, 1)
    assert how["initialization_timeout"] == how["heartbeat_timeout_seconds"] == 9


def test_a_wait_for_a_silent_host_takes_no_more_than_its_time(monkeypatch):
    """Attempts of 4 s on a clock of our own: a fourth one may not take that long."""
    now, given = [100.0], []

    def attempt(_, timeout):
        given.append(timeout)
        now[0] += min(timeout, 4.0)
        raise OSError("no route")

    class Clock:
        monotonic = staticmethod(lambda: now[0])

        @staticmethod
        def sleep(seconds):
            now[0] += seconds

    monkeypatch.setattr(mesh, "time", Clock)
    monkeypatch.setattr(mesh.socket, "create_connection", attempt)
    with pytest.raises(TimeoutError, match="after 9 s"):
        join_processes("10.0.0.1:1", processes=2, number=1, timeout_seconds=9)
    assert given == pytest.approx([9.0, 4.9, 0.8]) and now[0] == pytest.approx(109.0)
