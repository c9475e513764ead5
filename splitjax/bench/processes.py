"""The processes of a benchmark: clouds that an edge reaches over several networks."""

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax import monitoring

from splitjax.runtime.channel import Channel
from splitjax.runtime.cloud import Cloud
from splitjax.runtime.meter import Meter
from splitjax.runtime.programs import Programs
from splitjax.train import finetune, processes
from splitjax.train.drivers import ToCloud
from splitjax.train.experiment import Experiment
from splitjax.train.processes import ADDRESS, Door
from splitjax.train.serve import build
from splitjax.train.stepper import stepper

COMPILE = "/jax/core/compile/"
TIMES = "times.jsonl"  # in a cloud's folder


class Ways:
    """The ways to one cloud, over several networks; `move` goes from one to another.

    The edge finds its channel closed then, and dials again: the same slot and state.

    Args:
      doors: by network; the first is taken first.
    """

    def __init__(self, doors: dict[str, Door]):
        self._doors = doors
        self._network = next(iter(doors))
        self._channel: Channel | None = None

    def dial(self) -> Channel:
        """A channel over the network of now."""
        self._channel = self._doors[self._network].dial()
        return self._channel

    def move(self, network: str) -> None:
        """Takes another network from the next message on."""
        self._network = network
        if self._channel is not None:
            self._channel.close()


@dataclasses.dataclass
class Served:
    """A cloud in a process of its own.

    Attributes:
      doors: to it, by network.
      folder: its.
    """

    doors: dict[str, Door]
    folder: pathlib.Path
    _read: int = 0

    def times(self) -> list[tuple[str, float, float]]:
        """What the cloud has timed since the last call; see `Stopwatch`."""
        lines = (self.folder / TIMES).read_text().splitlines()
        new, self._read = lines[self._read :], len(lines)
        return [tuple(json.loads(line)) for line in new]


class Stopwatch:
    """Times the compiled functions of algorithms in this process, each to its end.

    It also hears how long JAX traces and compiles, and how long the code of a narrow
    cut is fit to public text.

    Args:
      say: told `(name, begin, end)` in seconds of the machine's monotonic clock. Names
        are "edge", "cloud" and "last", or "compile", or "fit".
    """

    def __init__(self, say: Callable[[str, float, float], None]):
        self._say = say

    def __enter__(self) -> "Stopwatch":
        # The library needs no door for this.
        self._inner = Programs._function, finetune.squeezed_params
        patched: tuple[Any, Any] = self._function, self._timed("fit", self._inner[1])
        Programs._function, finetune.squeezed_params = patched
        monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        Programs._function, finetune.squeezed_params = self._inner
        monitoring.unregister_event_duration_listener(self._heard)

    @property
    def _function(self) -> Callable:
        def function(programs, name, made, **kwargs):
            call = self._inner[0](programs, name, made, **kwargs)
            return self._timed(str(name[0]), call)

        return function

    def _timed(self, name: str, call: Callable) -> Callable:
        def run(*args, **kwargs):
            begin = time.monotonic()
            out = jax.block_until_ready(call(*args, **kwargs))
            self._say(name, begin, time.monotonic())
            return out

        return run

    def _heard(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith(COMPILE):
            end = time.monotonic()
            self._say("compile", end - duration_secs, end)


def pin(cores: Sequence[str], index: int = 0) -> None:
    """Keeps this process and those it starts to one of some cores; none: to any.

    XLA counts the cores when it starts: call this before.
    """
    if cores:
        os.sched_setaffinity(0, {int(cores[index])})


@contextlib.contextmanager
def pinned(cores: Sequence[str], index: int) -> Iterator[None]:
    """As `pin`, for the processes that are started within."""
    before = os.sched_getaffinity(0)
    pin(cores, index)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def fields_of(experiment: Experiment, base: Experiment) -> dict[str, Any]:
    """The options in which one experiment differs from another, as JSON has them."""
    ours, theirs = dataclasses.asdict(experiment), dataclasses.asdict(base)
    return {name: value for name, value in ours.items() if value != theirs[name]}


def with_fields(base: Experiment, fields: dict[str, Any]) -> Experiment:
    """The experiment that `fields_of` told of."""
    made: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
    }
    return dataclasses.replace(base, **made)


@dataclasses.dataclass(frozen=True)
class Bench:
    """What the parts of a benchmark share.

    Attributes:
      base: the experiment of the command line.
      command: starts this benchmark's main in another process.
      room: a folder for the time of the benchmark, with `certificates`.
      rounds: how often each step is timed.
      layers: after which to cut, over slow links.
      cores: of this process and of its clouds; none: any.
    """

    base: Experiment
    command: tuple[str, ...]
    room: pathlib.Path
    rounds: int
    layers: tuple[int, ...] = ()
    cores: tuple[str, ...] = ()

    def ask(self, task: str, experiment: Experiment, **more: Any) -> list[str]:
        """The command line of a process with a task; see `do`."""
        fields = fields_of(experiment, self.base)
        text = json.dumps({"task": task, "fields": fields, **more})
        return [*self.command, f"--task={text}"]

    @contextlib.contextmanager
    def cloud(
        self, experiment: Experiment, networks: Sequence[str] = ("",)
    ) -> Iterator[Served]:
        """A cloud that serves one edge over some networks; "" is the bare loopback."""
        number = len(list(self.room.glob("cloud_*")))
        folder, log = self.room / f"cloud_{number}", self.room / f"log_{number}"
        folder.mkdir()
        made = self.room / "certificates"
        more = {"folder": str(folder), "networks": list(networks)}
        more["certificates"] = str(made / "cloud")
        with contextlib.ExitStack() as stack:
            with pinned(self.cores, 1):
                asked = self.ask("cloud", experiment, **more)
                child = stack.enter_context(processes.process(asked, log))
            ports = json.loads(processes.address_of(child, folder, log))
            doors = {
                network: Door(
                    f"localhost:{port}", str(made / "edge_0"), network=network
                )
                for network, port in zip(networks, ports, strict=True)
            }
            yield Served(doors, folder)


def serve(experiment: Experiment, task: dict[str, Any]) -> None:
    """The task "cloud": serves, with a port for each network, until it is ended."""
    folder, wait_for_end = pathlib.Path(task["folder"]), processes.told_to_end()
    with contextlib.ExitStack() as stack:
        times = stack.enter_context((folder / TIMES).open("w", buffering=1))

        def say(*entry):
            times.write(json.dumps(entry) + "\n")

        stack.enter_context(Stopwatch(say))
        cloud = Cloud(build(experiment), folder)
        ports = []
        for network in task["networks"]:
            door = Door("localhost:0", task["certificates"], network=network)
            ports.append(stack.enter_context(door.open(cloud)).port)
        part = folder / "part"
        part.write_text(json.dumps(ports))
        part.rename(folder / ADDRESS)
        wait_for_end()


def first_step(experiment: Experiment, task: dict[str, Any]) -> None:
    """The tasks "edge" and "alone": a first step, and how long and large it was.

    Writes `{"hello", "end", "times", "peak_bytes"}` to the task's file; the times are
    those of `Stopwatch`.
    """
    times: list[tuple] = []
    with Stopwatch(lambda *entry: times.append(entry)):
        cloud = None
        if "address" in task:
            door = Door(task["address"], task["certificates"])
            cloud = ToCloud(_noting(door.dial, task))
        driver, step = stepper(experiment, cloud=cloud, meter=Meter())
        jax.block_until_ready(step())
        end = time.monotonic()
        jax.block_until_ready(step())
        driver.close()
    found = {"hello": task.get("hello"), "end": end, "times": times}
    found["peak_bytes"] = peak_bytes()
    pathlib.Path(task["file"]).write_text(json.dumps(found))


def peak_bytes() -> int:
    """The most memory that this process had at once, as far as the system tells.

    Example:
      >>> peak_bytes() > 2**20
      True
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        # A child's ru_maxrss begins with that of its parent; this one is its own.
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _noting(dial: Callable[[], Channel], task: dict[str, Any]) -> Callable:
    def run():
        task.setdefault("hello", time.monotonic())
        return dial()

    return run


def do(base: Experiment, text: str) -> None:
    """What a process is asked to do by `Bench.ask`."""
    task = json.loads(text)
    experiment = with_fields(base, task["fields"])
    {"cloud": serve, "edge": first_step, "alone": first_step}[task["task"]](
        experiment, task
    )
