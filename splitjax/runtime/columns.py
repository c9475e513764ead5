"""Entropy coding of whole numbers in columns, each with a distribution of its own."""

import math
import struct

import numpy as np
import zstandard
from constriction import stream

from splitjax.core.message import MAX_COLUMNS
from splitjax.runtime.entropy import MAX_CODED_BYTES, WrongCoding, claimed

# The least and the greatest number, how many bytes tell of the models, and whether rows
# have scales of their own.
HEAD = struct.Struct("<iiIB")
BLOCK = 2**16  # numbers that are coded at once, at most, in whole rows
# Deviations of the models: quarters of an octave from 2^-4 on. In literals, since what
# libraries make of 2.0**0.25 may differ in the last bit, and the ends must not.
QUARTERS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)
DEVIATIONS = np.array([math.ldexp(QUARTERS[i % 4], i // 4 - 4) for i in range(80)])
UNIT = 16  # where the deviation is 1
ROUNDS = 4  # of the fit of scales for rows and columns


def pack_columns(numbers: np.ndarray) -> bytes | None:
    """Codes whole numbers by a normal distribution for each column; None: no gain.

    A column's mean, in quarters, and its standard deviation, in quarters of an octave,
    cross in three bytes, and where that pays a factor for the deviations of each row,
    too (of gradients, whose tokens differ by orders of magnitude). zstandard makes
    these fewer. Then comes a stream of an asymmetric numeral system. A number takes its
    information under its model: a column that is nearly always zero next to nothing,
    which a code of whole bits does not reach.

    Args:
      numbers: of 8 or 16 bits, `[..., columns]`.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(1000, 2)) * [0.2, 50.0]
      >>> x = np.round(x).astype(np.int16)
      >>> coded = pack_columns(x)
      >>> len(coded)  # of 4000 bytes; zstandard needs 1550
      1020
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
        return _if_shorter(HEAD.pack(least, most, 0, 0), numbers)
    mean, power = _centered(table, table.mean(0))
    column, row = _number(power.mean(0)), None
    if min(rows, columns) > 1:
        of_row, _ = _scales(_centered(table, np.median(table, 0))[1])
        weight = (1 / of_row) / (1 / of_row).sum()
        other, power = _centered(table, weight @ table)
        if (both := _rows(power, column)) is not None:
            mean, (row, column) = other, both
    # Neighbors resemble each other where columns are sorted by their variance.
    high, low = (mean >> 8).astype(np.uint8), mean.astype(np.uint8)
    told = [np.diff(column, prepend=np.uint8(0)), high, low]
    if row is not None:
        told.append(row.view(np.uint8))
    models = zstandard.ZstdCompressor(level=19).compress(np.concatenate(told).data)
    coder = stream.stack.AnsCoder()
    family = stream.model.QuantizedGaussian(least, most)
    middle = _middle(least, most, mean)
    for part in reversed(_blocks(rows, columns)):  # what comes last is read first
        block = table[part].reshape(-1).astype(np.int32)
        coder.encode_reverse(block, family, *_each(middle, column, row, part))
    words = coder.get_compressed().astype("<u4").tobytes()
    head = HEAD.pack(least, most, len(models), row is not None)
    return _if_shorter(head + models + words, numbers)


def unpack_columns(
    coded: memoryview | bytes, shape: tuple[int, ...], dtype: np.dtype, *, what: str
) -> np.ndarray:
    """Undoes `pack_columns`, for bytes of anyone's.

    Whatever the bytes are, it allocates what the shape needs and some two megabytes,
    other threads run meanwhile, and what comes out are numbers of the dtype.

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

    size = math.prod(shape)
    columns = shape[-1] if size else 1
    rows = size // columns
    need(size > 0 and columns <= MAX_COLUMNS, f"none are due for the shape {shape}")
    need(len(coded) >= HEAD.size, f"{len(coded)} bytes")
    least, most, told_bytes, has_rows = HEAD.unpack_from(coded)
    kind = np.iinfo(dtype)
    need(kind.min <= least <= most <= kind.max, f"numbers from {least} to {most}")
    if least == most:
        need(len(coded) == HEAD.size, "more bytes than an even array has")
        return np.full(shape, least, dtype)
    body = bytes(coded[HEAD.size :])
    need(told_bytes <= len(body), f"{told_bytes} bytes of models in {len(body)}")
    need(has_rows <= 1, f"{has_rows} scales a row")
    due = 3 * columns + has_rows * rows
    told = np.frombuffer(claimed(body[:told_bytes], due, what=what), np.uint8)
    column, high, low, row = np.split(told, [columns, 2 * columns, 3 * columns])
    mean = high.astype(np.uint16) << 8 | low
    column = np.cumsum(column, dtype=np.uint8)
    need(bool((column < len(DEVIATIONS)).all()), "a deviation is out of range")
    words = body[told_bytes:]
    need(len(words) % 4 == 0, f"{len(words)} bytes are no whole words")
    words = np.frombuffer(words, "<u4").astype(np.uint32)
    need(not words.size or bool(words[-1]), "the last word is zero")
    coder = stream.stack.AnsCoder(words)
    family = stream.model.QuantizedGaussian(least, most)
    scales = _middle(least, most, mean), column, row.view(np.int8) if has_rows else None
    numbers = np.empty((rows, columns), dtype)
    for part in _blocks(rows, columns):
        block = coder.decode(family, *_each(*scales, part))
        numbers[part] = block.reshape(-1, columns)
    need(coder.is_empty(), "more words than the numbers need")
    return numbers.reshape(shape)


def _blocks(rows: int, columns: int) -> list[slice]:
    height = max(1, BLOCK // columns)
    return [slice(i, min(i + height, rows)) for i in range(0, rows, height)]


def _centered(table: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means as they cross, uint16, and squares of what the numbers are off them."""
    least, most = int(table.min()), int(table.max())
    unit, first = _unit(least, most)
    told = np.clip(np.round(mean / unit) - first, 0, 2**16 - 1).astype(np.uint16)
    return told, np.square(table - _middle(least, most, told))


def _rows(power: np.ndarray, column: np.ndarray) -> tuple | None:
    """Scales of rows, int8, and of columns beside them; None where they do not pay."""
    rows = len(power)
    of_row, of_column = _scales(power)
    row = np.clip(np.round(2 * np.log2(of_row)), -100, 100).astype(np.int8)
    both = row, _number(of_column)

    def bits(deviations):  # about what a number takes, also where it is mostly zero
        return float(np.log2(1 + 2 * np.pi * np.e * np.square(deviations)).sum()) / 2

    told = 8 * len(zstandard.ZstdCompressor(level=1).compress(row.data))
    scaled = _deviations(both[1], row, slice(rows))
    saved = rows * bits(DEVIATIONS[column]) - bits(scaled)
    return both if saved > told else None


def _scales(power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors of rows and columns whose products are nearest to squares like these."""
    power = power + DEVIATIONS[0] ** 2
    of_row, of_column = np.ones(len(power)), power.mean(0)
    for _ in range(ROUNDS):
        of_row = (power / of_column).mean(1)
        of_column = (power / of_row[:, None]).mean(0)
    return of_row, of_column


def _number(power: np.ndarray) -> np.ndarray:
    """The numbers of the nearest deviations of these mean squares, uint8."""
    number = np.round(2 * np.log2(np.maximum(power, DEVIATIONS[0] ** 2))) + UNIT
    return np.clip(number, 0, len(DEVIATIONS) - 1).astype(np.uint8)


def _unit(least: int, most: int) -> tuple[float, float]:
    """What means are multiples of, zero among them, and the number of the first one."""
    unit = max(0.25, (most - least) / (2**16 - 1))
    return unit, float(np.round(least / unit))


def _middle(least: int, most: int, mean: np.ndarray) -> np.ndarray:
    """The columns' means, float64."""
    unit, first = _unit(least, most)
    return (first + mean) * np.float64(unit)


def _deviations(column: np.ndarray, row: np.ndarray, part: slice) -> np.ndarray:
    """float64 `[rows of the part, columns]`."""
    number = row[part].astype(np.int16)[:, None] + column.astype(np.int16)
    return DEVIATIONS[np.clip(number, 0, len(DEVIATIONS) - 1)]


def _each(
    middle: np.ndarray, column: np.ndarray, row: np.ndarray | None, part: slice
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the deviation of each number of some rows, float64, flat."""
    rows = part.stop - part.start
    if row is None:
        return np.tile(middle, rows), np.tile(DEVIATIONS[column], rows)
    return np.tile(middle, rows), _deviations(column, row, part).reshape(-1)


def _if_shorter(coded: bytes, numbers: np.ndarray) -> bytes | None:
    return coded if len(coded) < min(numbers.nbytes, MAX_CODED_BYTES + 1) else None
