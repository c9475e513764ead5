"""The two halves of an experiment as processes: serving, dialing, and starting both."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from splitjax.runtime import view
from splitjax.runtime.channel import Channel
from splitjax.runtime.cloud import Cloud
from splitjax.runtime.credentials import channel_credentials, server_credentials
from splitjax.runtime.dial import dial
from splitjax.runtime.events import to_file
from splitjax.runtime.guard import Guard, read_token, read_tokens
from splitjax.runtime.network import Network, Slow
from splitjax.runtime.server import Server
from splitjax.train.experiment import Experiment
from splitjax.train.serve import build

ADDRESS = "address"  # the file in a cloud's workdir that has "HOST:PORT"
START_SECONDS = 120
CHILD = "SPLITJAX_CHILD"  # set for the processes that `process` starts


@dataclasses.dataclass(frozen=True)
class Door:
    """How one end of a connection is set up.

    Attributes:
      address: "HOST:PORT".
      certificates: this host's folder, as `experiments.certificates` makes it.
      client_certificates: whether edges show certificates, besides their tokens.
      plain: plain text, to loopback only unless `anywhere`.
      anywhere: allows plain text to other hosts.
      network: of what this end sends, to study a slow link; "" for none.
    """

    address: str
    certificates: str
    client_certificates: bool = False
    plain: bool = False
    anywhere: bool = False
    network: str = ""

    def slow(self, channel: Any) -> Channel:
        """The channel, as slow as the network that is asked for."""
        network = Network.parse(self.network) if self.network else None
        return Slow(channel, network) if network else channel

    def dial(self) -> Channel:
        """A channel from an edge to the cloud."""
        credentials = None
        if not self.plain:
            credentials = channel_credentials(
                self.certificates, client_certificates=self.client_certificates
            )
        token = read_token(self.certificates)
        stream = dial(
            self.address, credentials=credentials, token=token, plain=self.anywhere
        )
        return self.slow(stream)

    def open(self, cloud: Cloud) -> Server:
        """A server for the cloud."""
        shows = self.client_certificates
        credentials = None
        if not self.plain:
            credentials = server_credentials(
                self.certificates, client_certificates=shows
            )
        return Server(
            cloud,
            self.address,
            Guard(read_tokens(self.certificates), shows),
            credentials=credentials,
            plain=self.anywhere,
            wrap=self.slow,
        )


def serve(
    experiment: Experiment,
    door: Door,
    workdir: pathlib.Path,
    *,
    slots: int = 1,
    lease_seconds: float = 120.0,
    watch: bool = False,
) -> None:
    """Serves an experiment's cloud until the process is told to end.

    Writes `address` and `events.jsonl` into workdir, and the slots' folders.

    Args:
      experiment: as the edges have it.
      door: see `Door`.
      workdir: the cloud's.
      slots: how many edges at once.
      lease_seconds: see `Cloud`.
      watch: whether to show the live view.
    """
    experiment.validate()
    if experiment.mode == "unsplit":
        raise ValueError("mode='unsplit' has no halves: serve a split run")
    workdir.mkdir(parents=True, exist_ok=True)
    wait_for_end = told_to_end()
    cloud = Cloud(build(experiment), workdir, slots=slots, lease_seconds=lease_seconds)
    handler = to_file(workdir / "events.jsonl")
    with contextlib.closing(handler), door.open(cloud) as server:
        host = door.address.rpartition(":")[0]
        part = workdir / f"{ADDRESS}.part"
        part.write_text(f"{host}:{server.port}\n")
        part.rename(workdir / ADDRESS)
        with view.live(cloud, on=watch):
            wait_for_end()
    (workdir / ADDRESS).unlink(missing_ok=True)


def told_to_end() -> Callable[[], object]:
    """From now on SIGTERM and SIGINT do nothing but end the wait that this returns.

    The byte that ends it is written when the signal comes. A handler of Python's may
    come too late for that, when the wait has begun; and one that sets an event takes a
    lock, for which a second signal would wait for ever within the first.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return functools.partial(os.read, reader, 1)


@contextlib.contextmanager
def process(arguments: Sequence[str], log: pathlib.Path | None) -> Iterator[Any]:
    """A Python process that ends with the context, whatever happens.

    Even when this process is killed: its main need only call `end_with_parent`.

    Args:
      arguments: of the interpreter.
      log: where its output goes; None: where ours does.
    """
    with contextlib.ExitStack() as stack:
        output = None if log is None else stack.enter_context(log.open("ab"))
        child = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,  # ends when we do
            stdout=output,
            stderr=output,
            env={**os.environ, CHILD: "1"},
        )
        assert child.stdin is not None
        try:
            yield child
        finally:
            child.stdin.close()
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def end_with_parent() -> None:
    """Lets this process be told to end when the one whose `process` it is has died."""
    if os.environ.pop(CHILD, None):

        def wait():
            while os.read(0, 1024):  # not sys.stdin: its lock outlives the thread
                pass
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=wait, daemon=True).start()


def both(arguments: Sequence[str], workdir: pathlib.Path) -> int:
    """Runs an experiment's edge and cloud as two processes over TLS on loopback.

    Args:
      arguments: of the command line, that choose the config.
      workdir: the edge's, as for a run in one process; the cloud's is `cloud` in it.

    Returns:
      The edge's exit status.

    Raises:
      RuntimeError: when the cloud does not come up; the message has the end of its log.
    """
    from splitjax.runtime.certificates import make_certificates

    folder, log = workdir / "cloud", workdir / "cloud.log"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADDRESS).unlink(missing_ok=True)
    with _orderly(), tempfile.TemporaryDirectory() as room:
        made = make_certificates(pathlib.Path(room, "certificates"))
        cloud = ["-m", "experiments.cloud", *arguments, "--address=localhost:0"]
        cloud += [f"--certificates={made / 'cloud'}", f"--workdir={folder}"]
        with process(cloud, log) as child:
            address = address_of(child, folder, log)
            edge = ["-m", "experiments.edge", *arguments, f"--address={address}"]
            edge += [f"--certificates={made / 'edge_0'}", f"--workdir={workdir}"]
            with process(edge, None) as running:
                return running.wait()


@contextlib.contextmanager
def _orderly() -> Iterator[None]:
    """SIGTERM unwinds this process, as Ctrl-C does: else its children would stay."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def address_of(child: Any, folder: pathlib.Path, log: pathlib.Path) -> str:
    """What a cloud writes into its folder once it serves: where.

    Raises:
      RuntimeError: when it does not come up; the message has the end of its log.
    """
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and child.poll() is None:
        if (folder / ADDRESS).exists():
            return (folder / ADDRESS).read_text().strip()
        time.sleep(0.05)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise RuntimeError(f"the cloud did not come up; the end of {log}:\n{tail}")
