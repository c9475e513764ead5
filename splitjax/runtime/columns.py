"""Entropy coding of whole numbers in columns, each with a distribution of its own."""

import math
import struct

import numpy as np
import zstandard
from constriction import stream

from splitjax.runtime.entropy import WrongCoding, claimed

# Model of all numbers: the least and greatest one, and bytes of the columns' two bytes.
HEAD = struct.Struct("<iiH")
MAX_COLUMNS = 2**14
# Deviations of the models: quarters of an octave from 2^-4 on. In literals, since what
# libraries make of 2.0**0.25 may differ in the last bit, and the ends must not.
QUARTERS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)
DEVIATIONS = np.array([math.ldexp(QUARTERS[i % 4], i // 4 - 4) for i in range(80)])


def pack_columns(numbers: np.ndarray) -> bytes | None:
    """Codes whole numbers by a normal distribution for each column; None: no gain.

    A column's mean, in 255ths of the range, and its standard deviation, in quarters of
    an octave, cross in a byte each, which zstandard makes fewer; then comes a stream of
    an asymmetric numeral system. A number takes its information under its column's
    normal distribution: a column that is nearly always zero next to nothing, which a
    code of whole bits does not reach.

    Args:
      numbers: of 8 or 16 bits, `[..., columns]`.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(1000, 2)) * [0.2, 50.0]
      >>> x = np.round(x).astype(np.int16)
      >>> coded = pack_columns(x)
      >>> len(coded)  # of 4000 bytes; zstandard needs 1640
      1019
      >>> bool((unpack_columns(coded, x.shape, x.dtype, what="h") == x).all())
      True

    Reference:
      J. Duda, "Asymmetric numeral systems", 2009, arXiv:0902.0271; by the library of R.
      Bamler, "Understanding Entropy Coding With Asymmetric Numeral Systems (ANS): a
      Statistician's Perspective", 2022, arXiv:2201.01741.
    """
    table = numbers.reshape(-1, numbers.shape[-1] if numbers.size else 1)
    rows, columns = table.shape
    if not rows or columns > MAX_COLUMNS:
        return None
    least, most = int(table.min()), int(table.max())
    if least == most:
        return _if_shorter(HEAD.pack(least, most, 0), numbers)
    mean = (table.mean(0) - least) * (255 / (most - least))
    mean = np.round(mean).astype(np.uint8)
    spread = table.std(0)
    scale = np.round(4 * np.log2(np.maximum(spread, DEVIATIONS[0]))) + 16
    scale = np.clip(scale, 0, len(DEVIATIONS) - 1).astype(np.uint8)
    # Neighbors resemble each other where columns are sorted by their variance.
    told = np.concatenate([np.diff(scale, prepend=np.uint8(0)), mean])
    told = zstandard.ZstdCompressor(level=19).compress(told.data)
    if len(told) >= 2**16:
        return None
    coder = stream.stack.AnsCoder()
    coder.encode_reverse(
        table.reshape(-1).astype(np.int32), *_models(least, most, mean, scale, rows)
    )
    words = coder.get_compressed().astype("<u4").tobytes()
    return _if_shorter(HEAD.pack(least, most, len(told)) + told + words, numbers)


def unpack_columns(
    coded: memoryview | bytes, shape: tuple[int, ...], dtype: np.dtype, *, what: str
) -> np.ndarray:
    """Undoes `pack_columns`, for bytes of anyone's.

    Whatever the bytes are, it allocates what the shape needs, and what comes out are
    numbers of the dtype.

    Args:
      coded: what `pack_columns` gave.
      shape: of the numbers.
      dtype: of the numbers.
      what: for the errors.

    Raises:
      WrongCoding: for bytes that `pack_columns` does not give.

    Example: see `pack_columns`.
    """

    def need(holds: bool, why: str) -> None:
        if not holds:
            raise WrongCoding(f"{what}: the coded columns cannot be read: {why}")

    columns, size = (shape[-1] if math.prod(shape) else 1), math.prod(shape)
    need(size > 0 and columns <= MAX_COLUMNS, f"none are due for the shape {shape}")
    need(len(coded) >= HEAD.size, f"{len(coded)} bytes")
    least, most, told_bytes = HEAD.unpack_from(coded)
    kind = np.iinfo(dtype)
    need(kind.min <= least <= most <= kind.max, f"numbers from {least} to {most}")
    if least == most:
        need(len(coded) == HEAD.size, "more bytes than an even array has")
        return np.full(shape, least, dtype)
    body = bytes(coded[HEAD.size :])
    need(told_bytes <= len(body), f"{told_bytes} bytes of models in {len(body)}")
    told = np.frombuffer(claimed(body[:told_bytes], 2 * columns, what=what), np.uint8)
    scale, mean = np.cumsum(told[:columns], dtype=np.uint8), told[columns:]
    need(bool((scale < len(DEVIATIONS)).all()), "a deviation is out of range")
    words = body[told_bytes:]
    need(len(words) % 4 == 0, f"{len(words)} bytes are no whole words")
    words = np.frombuffer(words, "<u4").astype(np.uint32)
    need(not words.size or bool(words[-1]), "the last word is zero")
    coder = stream.stack.AnsCoder(words)
    models = _models(least, most, mean, scale, size // columns)
    numbers = coder.decode(*models)
    need(coder.is_empty(), "more words than the numbers need")
    return numbers.astype(dtype).reshape(shape)


def _if_shorter(coded: bytes, numbers: np.ndarray) -> bytes | None:
    return coded if len(coded) < numbers.nbytes else None


def _models(least: int, most: int, mean: np.ndarray, scale: np.ndarray, rows: int):
    """The family, and each number's mean and deviation, float64 `[rows * columns]`."""
    family = stream.model.QuantizedGaussian(least, most)
    middle = least + mean * np.float64(most - least) / 255
    return family, np.tile(middle, rows), np.tile(DEVIATIONS[scale], rows)
