"""The edge's way to the cloud: a channel over gRPC."""

import threading
from collections.abc import Iterator
from typing import Any

from splitjax.runtime.address import check_plain
from splitjax.runtime.channel import Closed, Joiner, Mailbox, chunks
from splitjax.runtime.guard import Unauthenticated, bearer
from splitjax.runtime.server import OPTIONS, PATH


class Stream:
    """The edge's end of a channel over gRPC; see `dial`."""

    def __init__(self, channel: Any, metadata: list, max_bytes: int):
        self._channel = channel
        self._inbox, self._outbox = Mailbox(), Mailbox()
        method = channel.stream_stream(PATH)
        self._call = method(self._pieces(), metadata=metadata)
        reader = threading.Thread(target=self._read, args=(max_bytes,), daemon=True)
        reader.start()

    def send(self, message: bytes) -> None:
        """See `Channel.send`."""
        for piece in chunks(message):
            self._outbox.put(piece)

    def receive(self, timeout: float | None = None) -> bytes:
        """See `Channel.receive`."""
        return self._inbox.get(timeout)

    def close(self) -> None:
        """See `Channel.close`."""
        self._outbox.end()
        self._inbox.end()
        self._call.cancel()
        self._channel.close()

    def finish(self, timeout: float) -> None:
        """Sends what is still to be sent, waits for the cloud to end, and closes."""
        self._outbox.end()
        try:
            while True:
                self._inbox.get(timeout)
        except (Closed, TimeoutError, Unauthenticated):
            self.close()

    def _pieces(self) -> Iterator[bytes]:
        while True:
            try:
                yield self._outbox.get()
            except Closed:
                return

    def _read(self, max_bytes: int) -> None:
        import grpc

        joiner = Joiner(max_bytes)
        error: Exception = Closed("the cloud ended the stream")
        try:
            for piece in self._call:
                if (message := joiner.add(piece)) is not None:
                    self._inbox.put(message)
        except grpc.RpcError as broken:
            error = _meaning(broken)
        except (ValueError, Closed) as broken:
            error = Closed(f"the stream broke: {broken}")
        self._outbox.end(error)
        self._inbox.end(error)


def dial(
    address: str,
    *,
    credentials: Any = None,
    token: str = "",
    plain: bool = False,
    max_message_bytes: int = 2**30,
) -> Stream:
    """Opens a stream to a cloud. It does not wait: what fails shows at `receive`.

    Args:
      address: "HOST:PORT".
      credentials: see `credentials.channel_credentials`; None is plain text.
      token: the edge's bearer token; "" where its certificate tells who it is.
      plain: allows plain text beyond loopback.
      max_message_bytes: of a message from the cloud: the weights are the longest.

    Raises:
      CredentialError: for plain text to another host.

    Example: see `splitjax.runtime.edge`.
    """
    import grpc

    metadata = list(bearer(token)) if token else []
    # One connection for each stream: a broken one is not taken again.
    options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    if credentials is None:
        check_plain(address, plain)
        channel = grpc.insecure_channel(address, options)
    else:
        channel = grpc.secure_channel(address, credentials, options)
    return Stream(channel, metadata, max_message_bytes)


def _meaning(error: Any) -> Exception:
    """What a gRPC error is to us."""
    import grpc

    code, details = error.code(), error.details()
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return Unauthenticated(details)
    return Closed(f"{code.name.lower()}: {details}")
