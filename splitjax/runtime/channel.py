"""A channel: the stream of messages between one edge and the cloud."""

import threading
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from splitjax.runtime.schema import FrameError

CHUNK_BYTES = 2**20
WAITING_BYTES = 2**26  # that one end may hold of what the other has sent or not taken
OBJECT_BYTES = 100  # what an object costs, however short
MORE, LAST = b"\0", b"\1"


class Closed(ConnectionError):
    """The other end is gone, or this end was closed."""


class BadPiece(FrameError):
    """A piece of a message that cannot be, or of one above the limit."""


class Channel(Protocol):
    """One end of a stream of messages; whole, in order, at most once.

    A message that was sent may be lost with the connection: who needs it answered
    keeps it, and sends it again on the next channel.
    """

    def send(self, message: bytes) -> None:
        """Hands a message over, without waiting for it to arrive.

        Raises:
          Closed: when the channel has ended.
        """
        ...

    def receive(self, timeout: float | None = None) -> bytes:
        """The next message.

        Args:
          timeout: seconds to wait at most; None: as long as it takes.

        Raises:
          TimeoutError: when none came in time.
          Closed: when the channel has ended.
        """
        ...

    def close(self) -> None:
        """Ends the channel, for both ends."""
        ...


class Mailbox:
    """Messages between threads, with an end.

    Args:
      max_bytes: how much may wait, and one message in any case; 0: any number.

    Example:
      >>> box = Mailbox()
      >>> box.put(b"one"); box.end()
      >>> box.get()
      b'one'
      >>> box.get()
      Traceback (most recent call last):
      ...
      splitjax.runtime.channel.Closed: the channel was closed
    """

    def __init__(self, max_bytes: int = 0):
        self._max_bytes, self._size = max_bytes, 0
        self._messages: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._error: Exception = Closed("the channel was closed")
        self._over = False

    def put(self, message: bytes, timeout: float | None = None) -> None:
        """Adds a message; waits where the box is full, and gives up when it ends.

        Raises:
          TimeoutError: when there was no room in time.
          Closed: or what it ended with.
        """
        size = len(message) + OBJECT_BYTES

        def has_room():
            fits = self._size + size <= self._max_bytes or not self._max_bytes
            return self._over or fits or not self._messages

        with self._changed:
            if not self._changed.wait_for(has_room, timeout):
                raise TimeoutError(f"nothing was taken within {timeout} s")
            if self._over:
                raise self._error
            self._messages.append(message)
            self._size += size
            self._changed.notify_all()

    def end(self, error: Exception | None = None) -> None:
        """Marks the end; what came before is still got, then the error."""
        with self._changed:
            if not self._over:
                self._error, self._over = error or self._error, True
                self._changed.notify_all()

    def get(self, timeout: float | None = None) -> bytes:
        """The next message; errors as `Channel.receive`."""
        with self._changed:
            self._changed.wait_for(lambda: self._messages or self._over, timeout)
            if self._messages:
                message = self._messages.popleft()
                self._size -= len(message) + OBJECT_BYTES
                self._changed.notify_all()
                return message
            if self._over:
                raise self._error
        raise TimeoutError(f"no message within {timeout} s")


class Pipe:
    """A channel inside of one process; see `pipe`."""

    def __init__(self, inbox: Mailbox, outbox: Mailbox):
        self._inbox, self._outbox = inbox, outbox

    def send(self, message: bytes) -> None:
        """See `Channel.send`."""
        self._outbox.put(bytes(message))

    def receive(self, timeout: float | None = None) -> bytes:
        """See `Channel.receive`."""
        return self._inbox.get(timeout)

    def close(self) -> None:
        """See `Channel.close`."""
        self._inbox.end()
        self._outbox.end()


def pipe() -> tuple[Pipe, Pipe]:
    """The two ends of a channel inside of one process.

    Example:
      >>> edge, cloud = pipe()
      >>> edge.send(b"up")
      >>> cloud.receive()
      b'up'
    """
    one, other = Mailbox(), Mailbox()
    return Pipe(one, other), Pipe(other, one)


def chunks(message: bytes, size_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Cuts a message into pieces that a transport takes; the last one is marked.

    Example:
      >>> list(chunks(b"abc", 2))
      [b'\\x00ab', b'\\x01c']
    """
    view = memoryview(message)
    for start in range(0, max(len(view), 1), size_bytes):
        end = start + size_bytes
        yield (LAST if end >= len(view) else MORE) + view[start:end]


class Joiner:
    """Joins the pieces of messages again, none longer than a limit.

    Args:
      max_bytes: of a message.

    Example:
      >>> joiner = Joiner(10)
      >>> [joiner.add(piece) for piece in chunks(b"abc", 2)]
      [None, b'abc']
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        # Not a list of pieces: short ones cost many times their bytes.
        self._whole = bytearray()

    def add(self, piece: bytes) -> bytes | None:
        """The message that a piece completes, or None.

        Raises:
          BadPiece: for a piece without a mark, or a message above the limit.
        """
        mark = piece[:1]
        if mark not in (MORE, LAST) or not piece:
            raise BadPiece(f"a piece begins with {mark!r}: expected 0 or 1")
        size = len(self._whole) + len(piece) - 1
        if size > self.max_bytes or (mark == MORE and len(piece) == 1):
            raise BadPiece(
                f"a message of {size} bytes or more; at most {self.max_bytes} "
                "are taken, and no empty pieces before the last"
            )
        if mark == LAST and not self._whole:
            return piece[1:]
        self._whole += memoryview(piece)[1:]
        if mark == MORE:
            return None
        whole, self._whole = bytes(self._whole), bytearray()
        return whole
