"""The records of a journal's file: how they are marked, checked and found again."""

import hashlib
import os
import struct
from collections.abc import Sequence
from typing import TypeAlias

HEAD = struct.Struct("<4sIB")  # mark, length, kind; then the digest
KEY_BYTES, MARK_BYTES, DIGEST_BYTES = 16, 4, 16
OVERHEAD_BYTES = HEAD.size + DIGEST_BYTES  # of each record
MAX_RECORD_BYTES = 2**30
CHUNK_BYTES = 2**20

Data: TypeAlias = bytes | bytearray | memoryview


class Records:
    """Writes and reads records at offsets of one file.

    A record is `mark, length, kind, digest, payload`. The digest is BLAKE2b of length,
    kind and payload, keyed with the record's offset and with chance that the file draws
    when it is made: bytes from somewhere else that look like a record are none.

    Args:
      key: the file's chance, 16 bytes.

    Example:
      >>> import tempfile
      >>> records = Records(b"0123456789abcdef")
      >>> with tempfile.TemporaryFile() as file:
      ...     size = file.write(records.head(0, 7, [b"tick"]) + b"tick")
      ...     file.flush()
      ...     records.load(file.fileno(), 0, size)
      (7, b'tick')
    """

    def __init__(self, key: bytes):
        self.key = key
        self.mark = key[:MARK_BYTES]

    def head(self, offset: int, kind: int, parts: Sequence[Data]) -> bytes:
        """What stands before a payload at an offset.

        Raises:
          ValueError: for a kind or a length out of range.
        """
        length = sum(len(part) for part in parts)
        if not 0 <= kind < 256:
            raise ValueError(f"{kind=}: expected 0 to 255")
        if length > MAX_RECORD_BYTES:
            raise ValueError(f"a record of {length} bytes; at most {MAX_RECORD_BYTES}")
        head = HEAD.pack(self.mark, length, kind)
        return head + self._digest(offset, head, parts)

    def load(self, file: int, offset: int, end: int) -> tuple[int, bytes] | None:
        """The kind and the payload of a record, or None where there is no whole one.

        Args:
          file: descriptor.
          offset: where the record begins.
          end: where the file ends.
        """
        room = end - offset - OVERHEAD_BYTES
        if offset < 0 or room < 0:
            return None
        head = os.pread(file, OVERHEAD_BYTES, offset)
        head, digest = head[: HEAD.size], head[HEAD.size :]
        mark, length, kind = HEAD.unpack(head.ljust(HEAD.size, b"\0"))
        # Before any memory is taken for it.
        if mark != self.mark or length > min(room, MAX_RECORD_BYTES):
            return None
        data = os.pread(file, length, offset + OVERHEAD_BYTES)
        if len(data) < length or self._digest(offset, head, [data]) != digest:
            return None
        return kind, data

    def next(self, file: int, offset: int, end: int) -> int | None:
        """Where a whole record begins, at or after an offset; None if nowhere."""
        while offset < end:
            chunk = os.pread(file, CHUNK_BYTES, offset)
            place = chunk.find(self.mark)
            while place >= 0:
                if self.load(file, offset + place, end) is not None:
                    return offset + place
                place = chunk.find(self.mark, place + 1)
            # A mark may lie across two chunks.
            offset += max(1, len(chunk) - MARK_BYTES + 1)
        return None

    def _digest(self, offset: int, head: bytes, parts: Sequence[Data]) -> bytes:
        place = offset.to_bytes(16, "little")
        made = hashlib.blake2b(head, digest_size=DIGEST_BYTES, key=self.key, salt=place)
        for part in parts:
            made.update(part)
        return made.digest()
