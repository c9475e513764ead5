"""The mesh of the cloud's devices, on one host or on several."""

import math
import re
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from splitjax.core.job import Disagreement, gather
from splitjax.core.tree import nearest

# What each axis divides: examples, blocks in a row, the width of a block, experts.
AXES = ("data", "pipe", "tensor", "expert")


def make_cloud_mesh(
    text: str, *, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
    """A mesh whose axes are `Auto`: the compiler finds the collectives.

    Args:
      text: axes and their sizes, the outermost first, as "data=2,pipe=2,tensor=2".
        Neighbors on the last axis are the nearest devices. Axes are of `AXES`; one
        that is not named has no shards.
      devices: what the mesh is made of; all devices of all processes by default.

    Returns:
      The mesh. `jax.make_mesh` by itself would make `Explicit` axes, under which the
      kernels of a row-parallel layer are refused.

    Raises:
      ValueError: for another text, an axis twice, or a product of sizes that is not
        the number of devices. (A CPU is one device, and as many virtual ones as the
        environment's JAX_NUM_CPU_DEVICES or JAX's option jax_num_cpu_devices says.)

    Example:
      >>> mesh = make_cloud_mesh("data=1,tensor=1", devices=jax.devices()[:1])
      >>> dict(mesh.shape), {kind.name for kind in mesh.axis_types}
      ({'data': 1, 'tensor': 1}, {'Auto'})
    """
    sizes = parse(text)
    devices = jax.devices() if devices is None else list(devices)
    product = math.prod(sizes.values())
    if product != len(devices):
        raise ValueError(
            f"mesh {text!r} is of {product} devices, and there are {len(devices)} "
            f"({devices[0].platform}): give sizes whose product is {len(devices)}, or "
            f"on a CPU set JAX_NUM_CPU_DEVICES={product} before JAX starts"
        )
    auto = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=auto, devices=devices
    )


def parse(text: str) -> dict[str, int]:
    """Sizes by axis, of a text as "data=2,tensor=4".

    Raises:
      ValueError: for another text, an axis that is unknown or named twice.

    Example:
      >>> parse("data=2, tensor=4")
      {'data': 2, 'tensor': 4}
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*", part)
        if found is None or int(found[2]) < 1:
            raise ValueError(
                f"mesh {text!r}: {part!r} is not an axis and its size; write it as "
                "'data=2,pipe=2,tensor=2'"
            )
        name = found[1]
        if name not in AXES:
            raise ValueError(f"mesh {text!r}: axis {name!r}: {nearest(name, AXES)}")
        if name in sizes:
            raise ValueError(f"mesh {text!r} names the axis {name!r} twice")
        sizes[name] = int(found[2])
    return sizes


def text_of(sizes: Mapping[str, int]) -> str:
    """The text of such sizes; `parse` reads it.

    Example:
      >>> text_of({"data": 2, "tensor": 4})
      'data=2,tensor=4'
    """
    return ",".join(f"{name}={size}" for name, size in sizes.items())


def join_processes(
    coordinator: str, *, processes: int, number: int, timeout_seconds: int = 60
) -> None:
    """Joins this process to a job of several; call it before anything else of JAX.

    All of them then see all devices, and run the same program at the same time. When
    one dies, or process 0 waits in vain for the others, JAX ends the whole process with
    a line in its log; so an edge, or a server that may come and go, is never part of
    such a job.

    Args:
      coordinator: "host:port" of process 0, where it listens.
      processes: how many there are, on all hosts.
      number: of this one, from 0.
      timeout_seconds: how long to wait for process 0 to listen, then for the others to
        come, and later for one that is not heard any more.

    Raises:
      ValueError: for a number that is not below `processes`.
      TimeoutError: when process 0 cannot be reached in time.
      RuntimeError: when JAX runs already.

    Example:
      >>> join_processes("10.0.0.1:1234", processes=2, number=2)
      Traceback (most recent call last):
      ...
      ValueError: process 2 of 2: numbers run from 0 to 1
    """
    if not 0 <= number < processes:
        raise ValueError(
            f"process {number} of {processes}: numbers run from 0 to {processes - 1}"
        )
    if number:
        _wait_for(coordinator, timeout_seconds)
    jax.distributed.initialize(
        coordinator,
        num_processes=processes,
        process_id=number,
        initialization_timeout=timeout_seconds,
        heartbeat_timeout_seconds=timeout_seconds,
    )


def _wait_for(coordinator: str, timeout_seconds: int) -> None:
    """Returns when the address listens: JAX would abort where it does not."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator {coordinator!r}: expected 'host:port'")
    end = time.monotonic() + timeout_seconds
    while True:
        left = max(end - time.monotonic(), 0.0)
        try:
            socket.create_connection((host, int(port)), left).close()
            return
        except OSError as error:
            if time.monotonic() >= end:
                raise TimeoutError(
                    f"process 0 does not listen at {coordinator} after "
                    f"{timeout_seconds} s ({error}): start it, with the same address"
                ) from error
            time.sleep(0.1)


def check_agreement(config: Any) -> None:
    """Raises unless all processes of the job run the same config; call it once, first.

    One that runs another program would wait for ever in its first collective.

    Args:
      config: what the program depends on, as JSON types.

    Raises:
      Disagreement: on every process; it names those that differ from process 0.

    Example:
      >>> check_agreement({"mesh": "data=2", "seed": 0})
    """
    compare(gather("the comparison of configs", config))


def compare(configs: Sequence[Any]) -> None:
    """Raises unless the configs of all processes are alike.

    Example:
      >>> compare([{"seed": 0}, {"seed": 0}, {"seed": 1}])
      Traceback (most recent call last):
      ...
      splitjax.core.job.Disagreement: the config of process 2 is not that of \
process 0 (of 3): start all of them with the same options
    """
    unlike = [n for n, config in enumerate(configs) if config != configs[0]]
    if unlike:
        raise Disagreement(
            f"the config of process {', '.join(map(str, unlike))} is not that of "
            f"process 0 (of {len(configs)}): start all of them with the same options"
        )
