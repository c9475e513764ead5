"""A journal: records that are on disk before anything is done with them."""

import errno
import fcntl
import io
import os
import pathlib
import struct
import threading
from collections.abc import Iterator, Sequence

from splitjax.storage.record import KEY_BYTES, OVERHEAD_BYTES, Data, Records

MAGIC, VERSION = b"spJL", 1
FILE = struct.Struct(f"<4sI{KEY_BYTES}s")  # magic, version, chance of this file
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class JournalError(RuntimeError):
    """A journal that cannot be used, or not any more."""


class JournalFull(JournalError):
    """There is no room for a record. The journal is as it was before."""


class Journal:
    """Appends binary records to a file, and reads them again after a crash.

    At the opening the file is read from its start. What a crash left of the last record
    is cut off. A damaged record with a whole one behind it is not what a crash leaves,
    and is refused. (Records without `sync` may reach the disk in any order: a power cut
    before the next `sync` can leave that too.)

    One journal at a time may have the file open. Its methods may be called from any
    thread. The format is that of `splitjax.storage.record`.

    Args:
      path: of the file; it and its folder are made when they are not there.

    Raises:
      JournalError: when another has it open, when it is no journal or one of another
        version, and when it is damaged before its end.
      JournalFull: when there is no room to make one.

    Example:
      >>> import tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "ticks")
      >>> with Journal(path) as journal:
      ...     offsets = [journal.append(1, b"up"), journal.append(2, [b"do", b"wn"])]
      >>> with Journal(path) as journal:
      ...     journal.read(offsets[1]), [kind for _, kind, _ in journal]
      ((2, b'down'), [1, 2])
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path).absolute()
        self._lock = threading.Lock()
        self._refused = ""
        self._torn_bytes = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # For the owner alone: what a journal keeps was private on its way.
        self._file = io.FileIO(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+")
        try:
            self._take()
            self._end = self._synced = self._open()
        except OSError as error:
            self._file.close()
            what = JournalFull if error.errno in FULL else JournalError
            raise what(f"{self.path} cannot be opened: {error}") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Yields `(offset, kind, payload)` in order, one record in memory at a time."""
        offset = FILE.size
        while offset < self._end:
            kind, data = self.read(offset)
            yield offset, kind, data
            offset += OVERHEAD_BYTES + len(data)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self._end

    @property
    def torn_bytes(self) -> int:
        """Bytes that were cut off at the opening: what a crash left of a record."""
        return self._torn_bytes

    def append(
        self, kind: int, data: Data | Sequence[Data], *, sync: bool = True
    ) -> int:
        """Adds a record at the end.

        Args:
          kind: a number of the caller's, below 256.
          data: the payload, whole or in parts; at most 1 GiB.
          sync: whether to return only when it is on disk.

        Returns:
          The offset, for `read`.

        Raises:
          JournalFull: when there is no room. The file is as it was before, and a later
            append works when there is room again.
          JournalError: when the disk fails in another way. What is on it is not known
            then, so the journal takes no more; open it again to see.
          ValueError: for a kind or a length out of range.

        Example: see `Journal`.
        """
        views = _views(data)
        with self._lock:
            self._check()
            start = self._end
            parts = [self._records.head(start, kind, views), *views]
            end = 0
            try:
                end = self._write(start, parts)
                if sync:
                    os.fsync(self._file.fileno())
            except BaseException as error:
                # A sync that failed may have lost earlier records that waited for it.
                lost = end and self._synced < start and isinstance(error, OSError)
                self._undo(error, safe=not lost)
                raise
            self._end = end
            if sync:
                self._synced = end
        return start

    def sync(self) -> None:
        """Returns when all records are on disk: several appends, one wait.

        Raises:
          JournalError: when the disk fails. The journal takes no more.
        """
        with self._lock:
            self._check()
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                self._refuse(error)
                raise JournalError(self._refused) from error
            self._synced = self._end

    def read(self, offset: int) -> tuple[int, bytes]:
        """The kind and the payload of the record at an offset.

        Raises:
          JournalError: when no whole record begins there.
        """
        if self._file.closed:
            raise JournalError(f"{self.path} is closed")
        record = self._records.load(self._file.fileno(), offset, self._end)
        if record is None or offset < FILE.size:
            raise JournalError(f"{self.path}: no whole record begins at byte {offset}")
        return record

    def close(self) -> None:
        """Closes the file and lets others open it."""
        with self._lock:
            self._file.close()

    def _take(self) -> None:
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(
                f"{self.path} is open already, here or in another process: stop that "
                "one, or take another folder"
            ) from error

    def _open(self) -> int:
        """Makes or reads the file, cuts off what is torn, and returns its end."""
        file = self._file.fileno()
        size = os.fstat(file).st_size
        head = os.pread(file, FILE.size, 0)
        begin = FILE.pack(MAGIC, VERSION, b"")[:-KEY_BYTES]
        # A crash while the file was made leaves its beginning, or zeros.
        if (size < FILE.size and begin.startswith(head[: len(begin)])) or (
            size <= FILE.size and not any(head)
        ):
            head = FILE.pack(MAGIC, VERSION, os.urandom(KEY_BYTES))
            size = self._write(0, [head])
        magic, version, key = FILE.unpack(head.ljust(FILE.size, b"\0"))
        if magic != MAGIC:
            raise JournalError(
                f"{self.path} is no journal: it begins with {magic!r}. Move it away, "
                "or take another folder"
            )
        if version != VERSION:
            raise JournalError(
                f"{self.path} is a journal of version {version}, this program reads "
                f"{VERSION}: finish the run with the program that began it"
            )
        self._records = Records(key)
        end = self._whole(size)
        if end < size:
            self._torn_bytes = size - end
            os.ftruncate(file, end)
        os.fsync(file)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or the file may have no name after a power cut
        finally:
            os.close(folder)
        return end

    def _whole(self, size: int) -> int:
        """Where the whole records end."""
        file, offset = self._file.fileno(), FILE.size
        while (record := self._records.load(file, offset, size)) is not None:
            offset += OVERHEAD_BYTES + len(record[1])
        behind = self._records.next(file, offset, size)
        if behind is not None:
            raise JournalError(
                f"{self.path}: the record at byte {offset} is damaged, and whole ones "
                f"follow from byte {behind}. No crash leaves that: the disk or another "
                "program changed the file. Nothing was cut off. Put back a copy of it, "
                "or move it away and go on from a checkpoint"
            )
        return offset

    def _check(self) -> None:
        if self._file.closed:
            raise JournalError(f"{self.path} is closed")
        if self._refused:
            raise JournalError(self._refused)

    def _write(self, offset: int, parts: Sequence[Data]) -> int:
        for part in parts:
            left = memoryview(part)
            while left:
                count = os.pwrite(self._file.fileno(), left, offset)
                if not count:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                left, offset = left[count:], offset + count
        return offset

    def _undo(self, error: BaseException, *, safe: bool) -> None:
        """Takes an append back; raises what became of it, unless it was interrupted."""
        try:
            os.ftruncate(self._file.fileno(), self._end)
        except OSError:
            safe = False
        try:
            os.fsync(self._file.fileno())  # or a power cut may bring the record back
        except OSError as other:
            # Where the disk is full, the next append's sync does it.
            safe = safe and other.errno in FULL
        if isinstance(error, OSError) and error.errno in FULL and safe:
            raise JournalFull(
                f"{self.path}: no room for a record at byte {self._end} ({error}). "
                "Make room and go on: the journal is as it was before"
            ) from error
        if isinstance(error, OSError) or not safe:
            self._refuse(error)
        if isinstance(error, OSError):
            raise JournalError(self._refused) from error

    def _refuse(self, error: BaseException) -> None:
        self._refused = (
            f"{self.path} takes no more: {error!r}. What is on the disk is not known; "
            "open it again, and the whole records are read"
        )


def _views(data: Data | Sequence[Data]) -> list[memoryview]:
    parts = [data] if isinstance(data, bytes | bytearray | memoryview) else data
    return [memoryview(part).cast("B") for part in parts]
