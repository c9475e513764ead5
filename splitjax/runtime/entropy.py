"""Entropy coding of a leaf's bytes, by zstandard, within sizes that both ends know."""

import numpy as np
import zstandard

from splitjax.runtime.schema import FrameError

MAX_CODED_BYTES = 2**32 - 1  # what the count in a frame can say


class WrongCoding(FrameError):
    """Coded bytes that are not what they claim, or claim another size than is due."""


def shrink(raw: np.ndarray, *, item_bytes: int, level: int) -> bytes | None:
    """Codes bytes; None where that does not pay.

    The bytes of wider numbers are sorted by their place in the number first, since the
    high ones resemble each other. One version of zstandard gives the same bytes for the
    same input on every machine.

    Args:
      raw: uint8 `[n]`.
      item_bytes: of the numbers that they are.
      level: 1 (fast) to 19.

    Example:
      >>> coded = shrink(np.zeros(1000, np.uint8), item_bytes=4, level=1)
      >>> len(coded) < 30
      True
      >>> bytes(grow(coded, 1000, item_bytes=4, what="h")) == bytes(1000)
      True
    """
    if item_bytes > 1:
        raw = np.ascontiguousarray(raw.reshape(-1, item_bytes).T)
    coded = zstandard.ZstdCompressor(level=level).compress(raw.data)
    return coded if len(coded) < min(raw.size, MAX_CODED_BYTES + 1) else None


def grow(
    coded: memoryview | bytes, size_bytes: int, *, item_bytes: int, what: str
) -> memoryview:
    """Undoes `shrink`, for bytes of anyone's.

    The size that the bytes claim to grow to is read first. (zstandard allocates what
    they claim, whatever limit it is given.)

    Args:
      coded: what `shrink` gave.
      size_bytes: what it must grow to.
      item_bytes: as it was coded.
      what: for the errors.

    Raises:
      WrongCoding: for anything else.

    Example: see `shrink`.
    """
    array = np.frombuffer(claimed(coded, size_bytes, what=what), np.uint8)
    if item_bytes > 1:
        array = np.ascontiguousarray(array.reshape(item_bytes, -1).T).reshape(-1)
    return array.data


def claimed(coded: memoryview | bytes, size_bytes: int, *, what: str) -> bytes:
    """What zstandard makes of bytes of anyone's, where they claim to grow to this size.

    Args:
      coded: one frame of zstandard's.
      size_bytes: what it must grow to.
      what: for the errors.

    Raises:
      WrongCoding: for anything else.

    Example:
      >>> claimed(zstandard.compress(b"abc"), 3, what="h")
      b'abc'
    """
    try:
        found = zstandard.get_frame_parameters(coded)
        if found.content_size != size_bytes:
            raise WrongCoding(
                f"{what}: the coded bytes claim to grow to {found.content_size} bytes; "
                f"{size_bytes} are due"
            )
        raw = zstandard.ZstdDecompressor().decompress(coded, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WrongCoding(f"{what}: the coded bytes cannot be read: {error}") from error
    if len(raw) != size_bytes:
        raise WrongCoding(f"{what}: {len(raw)} bytes were coded; {size_bytes} are due")
    return raw
