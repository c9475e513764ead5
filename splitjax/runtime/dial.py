"""The edge's way to the cloud: a channel over gRPC."""

import threading
import time
from collections.abc import Iterator
from typing import Any

from splitjax.runtime.address import check_plain
from splitjax.runtime.channel import WAITING_BYTES, Closed, Joiner, Mailbox, chunks
from splitjax.runtime.credentials import CredentialError
from splitjax.runtime.guard import Unauthenticated, bearer
from splitjax.runtime.server import OPTIONS, PATH

# gRPC calls each of these "unavailable", but to dial again mends none of them.
UNTRUSTED = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not of an authority in ca.pem, "
    "or out of date",
    "Hostname Verification Check failed": "its certificate is of other host names",
    "WRONG_VERSION_NUMBER": "it speaks no TLS",
}
# A cloud that does not take a certificate says nothing, it hangs up.
HUNG_UP = ("failed to connect", "Socket closed")


class Stream:
    """The edge's end of a channel over gRPC; see `dial`."""

    def __init__(self, channel: Any, address: str, metadata: list, max_bytes: int):
        self._channel, self._address = channel, address
        # What the cloud sends ahead stays with the cloud; what we say is ours to hold.
        self._inbox, self._outbox = Mailbox(WAITING_BYTES), Mailbox()
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
        try:
            return self._inbox.get(timeout)
        except TimeoutError as error:
            raise TimeoutError(f"{self._address}: {error}") from None

    def close(self) -> None:
        """See `Channel.close`."""
        self._outbox.end()
        self._inbox.end()
        self._call.cancel()
        self._channel.close()

    def finish(self, timeout: float) -> None:
        """Sends what is still to be sent, waits for the cloud to end, and closes."""
        self._outbox.end()
        end = time.monotonic() + timeout  # in all: a cloud may talk without end
        try:
            while (left := end - time.monotonic()) > 0:
                self._inbox.get(left)
        except (Closed, TimeoutError, Unauthenticated, CredentialError):
            pass  # it ended, one way or the other
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
            error = _meaning(broken, self._address)
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

    There, a cloud that does not know the edge is an `Unauthenticated`, a cloud whose
    certificate the edge does not trust is a `CredentialError`, and what may pass is a
    `Closed`.

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
    return Stream(channel, address, metadata, max_message_bytes)


def _meaning(error: Any, address: str) -> Exception:
    """What a gRPC error is to us; a `Closed` one is worth to dial again."""
    import grpc

    code, details = error.code(), error.details() or ""
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return Unauthenticated(details)
    for sign, why in UNTRUSTED.items():
        if sign in details:
            return CredentialError(f"{address} is not trusted: {why} ({details})")
    text = f"{address}: {code.name.lower()}: {details}"
    if all(sign in details for sign in HUNG_UP):
        text += (
            ". Who answers hangs up at once: does it ask for a client certificate of "
            "its own authority, or does only one end speak TLS?"
        )
    return Closed(text)
