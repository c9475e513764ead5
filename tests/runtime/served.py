"""A cloud behind gRPC on loopback, in this process, and what a test does to it."""

import functools
import pathlib

from splitjax.runtime.cloud import Cloud
from splitjax.runtime.credentials import channel_credentials, server_credentials
from splitjax.runtime.dial import dial
from splitjax.runtime.guard import Guard, read_token, read_tokens
from splitjax.runtime.server import Server
from tests.runtime.conftest import (
    ROUGH,
    STATEFUL,
    Model,
    batches,
    build,
    run_all,
    same,
)

HOST = "127.0.0.1"
STEPS, SAVED = 4, 2  # of a `whole` run, and before its checkpoint
MODELS = {
    "plain": dict(link=ROUGH),
    "u": dict(link=STATEFUL, places=("dense_0", "head")),
    "micro": dict(link=STATEFUL, micro=2, clip=0.1),
    "slot 1": dict(link=ROUGH, slot=1),
    "wide": dict(width=1024, clip=0.1),  # messages of 32 kB
}


@functools.cache
def model(name: str) -> Model:
    """A model of `MODELS`; one for all tests, so that its functions compile once."""
    return Model(**MODELS[name])


@functools.cache
def alone(name: str, count: int) -> tuple:
    """What one process makes of a model: state, losses and outputs."""
    one = model(name)
    driver = one.local()
    start = driver.start(one.params, one.state, one.x)
    run, losses = run_all(driver, start, batches(count, micro=one.micro))
    return run, losses, driver.predict(run, one.x)


class Served:
    """A cloud and its server, that may stop and come back on the same port.

    Args:
      model: what it runs.
      folder: of its slots.
      keys: as `make_certificates` makes them.
      tokens: whether edges show tokens.
      client_certificates: whether they show certificates.
      cloud: stands in for the cloud.
      server: more arguments of `Server`.
      **kwargs: more arguments of `Cloud`.
    """

    def __init__(
        self,
        model: Model | None,
        folder: pathlib.Path,
        keys: pathlib.Path,
        *,
        tokens: bool = True,
        client_certificates: bool = False,
        cloud=None,
        server: dict | None = None,
        **kwargs,
    ):
        self.keys, self.shows = keys, client_certificates
        known = read_tokens(keys / "cloud") if tokens else None
        self._guard = Guard(known, client_certificates)
        self._credentials = server_credentials(
            keys / "cloud", client_certificates=client_certificates
        )
        self._options = server or {}
        self._make = lambda: cloud or Cloud(build(model), folder, **kwargs)
        self.port = 0
        self.start()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serves; after a stop, on the port it had."""
        self.cloud = self._make()
        self.server = Server(
            self.cloud,
            f"{HOST}:{self.port}",
            self._guard,
            credentials=self._credentials,
            **self._options,
        )
        self.port = self.server.port

    def stop(self) -> None:
        """As SIGTERM does."""
        self.server.stop()

    def dial(self, slot: int = 0, *, port: int = 0, keys=None, **kwargs):
        """A channel as the edge of a slot has it."""
        place = (keys or self.keys) / f"edge_{slot}"
        credentials = channel_credentials(place, client_certificates=self.shows)
        options = {"credentials": credentials, "token": read_token(place), **kwargs}
        return dial(f"{HOST}:{port or self.port}", **options)


def start(edge, one: Model, **kwargs):
    """An edge's first state."""
    return edge.start(one.params, one.state, one.x, **kwargs)


def whole(edge, name):
    """A run with a checkpoint and a forward pass ends in the bits of one process."""
    one, (want, losses, out) = model(name), alone(name, STEPS)
    steps = batches(STEPS, micro=one.micro)
    run, first = run_all(edge, start(edge, one), steps[:SAVED], in_flight=one.micro)
    edge.saved(run)
    run, rest = run_all(edge, run, steps[SAVED:], in_flight=one.micro)
    assert first + rest == losses
    same(edge.predict(run, one.x), out)
    same(run.edge, want.edge)
    edge.close()


class Echo:
    """Stands in for a cloud: sends back what it gets."""

    def __init__(self):
        self.refused: list[Exception] = []

    def status(self) -> list:
        return [None]

    def close(self) -> None: ...

    def serve(self, number, channel) -> None:
        try:
            while True:
                channel.send(channel.receive())
        except (ConnectionError, ValueError) as error:
            self.refused.append(error)
            channel.close()
