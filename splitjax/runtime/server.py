"""The cloud's door: a gRPC server with one stream for each edge."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

from splitjax.runtime.address import check_plain
from splitjax.runtime.channel import (
    CHUNK_BYTES,
    WAITING_BYTES,
    BadPiece,
    Channel,
    Closed,
    Joiner,
    Mailbox,
    chunks,
)
from splitjax.runtime.cloud import CALLERS, Cloud
from splitjax.runtime.events import tell
from splitjax.runtime.guard import Guard, Unauthenticated

SERVICE, METHOD = "splitjax.Cloud", "Run"
PATH = f"/{SERVICE}/{METHOD}"
# Besides the streams of the edges: health checks, and those who are turned away.
SPARE_THREADS = 4
SEND_SECONDS = 120.0  # for a piece of an answer to be taken
MESSAGE = "max_receive_message_length"
OPTIONS = [
    (f"grpc.{MESSAGE}", CHUNK_BYTES + 2**10),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Pings that waited for a busy machine arrive all at once, and are no abuse.
    ("grpc.http2.max_ping_strikes", 0),
]


class ServerError(RuntimeError):
    """The server cannot be had, or its address cannot."""


class Server:
    """Serves a cloud at an address until it is stopped.

    Every edge has a stream, and three threads: one takes its messages in, one runs its
    slot, one sends the answers. (A thread for each edge, rather than one event loop for
    all: a step takes longer than any loop may be held up.)

    Args:
      cloud: what is served.
      address: "HOST:PORT"; port 0 takes a free one.
      guard: tells which slot a caller may use.
      credentials: see `credentials.server_credentials`; None is plain text.
      plain: allows plain text beyond loopback.
      max_message_bytes: of a message from an edge.
      wrap: put around each channel, as `network.Slow`.

    Raises:
      ServerError: when the address is in use, or is none.

    Example:
      >>> from splitjax.runtime.cloud import Cloud
      >>> import tempfile
      >>> def build(slot, config, facts): ...
      >>> cloud = Cloud(build, tempfile.mkdtemp())
      >>> guard = Guard({64 * "0": 0}, client_certificates=False)
      >>> with Server(cloud, "localhost:0", guard) as server:
      ...     server.port > 0
      True
    """

    def __init__(
        self,
        cloud: Cloud,
        address: str,
        guard: Guard,
        *,
        credentials: Any = None,
        plain: bool = False,
        max_message_bytes: int = 2**28,
        wrap: Callable[[Channel], Channel] = lambda channel: channel,
    ):
        import grpc
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc

        if credentials is None:
            check_plain(address, plain)
        self.cloud = cloud
        self._guard, self._max_bytes = guard, max_message_bytes
        self._wrap = wrap
        slots = len(cloud.status())
        # However many times an edge calls, there is room for the others.
        threads = (CALLERS + 1) * slots + SPARE_THREADS
        pool = futures.ThreadPoolExecutor(threads, "splitjax-cloud")
        self._server = grpc.server(
            pool,
            options=[*OPTIONS, ("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=threads,
        )
        handler = grpc.stream_stream_rpc_method_handler(self._run)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
        )
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._states = health_pb2.HealthCheckResponse
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            self._server.stop(None)
            raise ServerError(
                f"{address} cannot be served: is the port in use, and the host of this "
                f"machine? Give another --address, or port 0 for a free one ({error})"
            ) from error
        self._server.start()
        self._tell("SERVING")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, grace_seconds: float = 5.0) -> None:
        """Ends every session after the message it is at, and then the server."""
        self._tell("NOT_SERVING")
        self.cloud.close()
        self._server.stop(grace_seconds).wait()

    def _tell(self, state: str) -> None:
        for service in ("", SERVICE):
            self._health.set(service, getattr(self._states, state))

    def _run(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        import grpc

        try:
            slot = self._guard.slot(
                context.invocation_metadata(), context.auth_context()
            )
        except Unauthenticated as error:
            tell("unauthenticated", peer=context.peer(), why=str(error))
            context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            return
        stream = ServerStream(requests, context, self._max_bytes)
        worker = threading.Thread(
            target=self.cloud.serve,
            args=(slot, self._wrap(stream)),
            name=f"splitjax-slot-{slot}",
        )
        worker.start()
        try:
            yield from stream.outgoing()
        finally:
            stream.close()
            worker.join()


class ServerStream:
    """The cloud's end of a channel over gRPC.

    Args:
      requests: pieces from the edge.
      context: of the call.
      max_bytes: of a message.
    """

    def __init__(self, requests: Iterator[bytes], context: Any, max_bytes: int):
        # Little may wait: what an edge sends ahead stays with the edge, and who takes
        # no answers is given no more.
        self._inbox, self._outbox = Mailbox(WAITING_BYTES), Mailbox(WAITING_BYTES)
        self._context = context
        reader = threading.Thread(
            target=self._read, args=(requests, max_bytes), daemon=True
        )
        context.add_callback(self.close)
        reader.start()

    def send(self, message: bytes) -> None:
        """See `Channel.send`."""
        for piece in chunks(message):
            self._outbox.put(piece, SEND_SECONDS)

    def receive(self, timeout: float | None = None) -> bytes:
        """See `Channel.receive`."""
        return self._inbox.get(timeout)

    def close(self) -> None:
        """See `Channel.close`."""
        self._inbox.end()
        self._outbox.end()

    def outgoing(self) -> Iterator[bytes]:
        """The pieces to send, until the channel is closed."""
        while True:
            try:
                yield self._outbox.get()
            except Closed:
                return

    def _read(self, requests: Iterator[bytes], max_bytes: int) -> None:
        joiner = Joiner(max_bytes)
        try:
            for piece in requests:
                if (message := joiner.add(piece)) is not None:
                    self._inbox.put(message)
            self._inbox.end()
        except BadPiece as error:
            # The cloud tells the edge: else it would dial and send the same again.
            self._inbox.end(error)
        except Exception as error:
            # gRPC raises a bare Exception when the call is over.
            self._inbox.end(Closed(f"the stream broke: {error}"))
