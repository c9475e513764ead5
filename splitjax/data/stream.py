"""A stream: one long text as tokens or bytes, read in windows for language models."""

import dataclasses
import gzip
import pathlib

import numpy as np

from splitjax.core.tree import nearest
from splitjax.data import archive
from splitjax.data.order import Ordered
from splitjax.data.table import DataError
from splitjax.data.tokenize import Tokenizer

CORPORA = ("wikitext2", "enwik8")
SPLITS = ("train", "dev", "test")
# Bytes that nearly always hold a token: what is read of a text for its first tokens.
WIDEST = 32


@dataclasses.dataclass(frozen=True)
class Stream:
    """One split of a corpus as symbols.

    Attributes:
      name: of the corpus.
      split: "train", "dev" or "test".
      symbols: (N,) int32 token ids, or uint8 bytes.
      vocab: how many symbols there are.

    Raises:
      DataError: for fewer than two symbols, or one outside of the vocabulary.

    Example:
      >>> len(Stream("mine", "train", np.array([0, 2, 1]), 3))
      3
    """

    name: str
    split: str
    symbols: np.ndarray
    vocab: int

    def __post_init__(self):
        where = f"{self.name} ({self.split})"
        if self.symbols.ndim != 1 or len(self.symbols) < 2:
            raise DataError(
                f"{where} is {self.symbols.shape}: a stream is a row of two symbols or "
                "more, each to be predicted from those before it"
            )
        least, most = int(self.symbols.min()), int(self.symbols.max())
        if least < 0 or most >= self.vocab:
            raise DataError(
                f"{where} has symbols from {least} to {most}; the vocabulary is 0 to "
                f"{self.vocab - 1}"
            )

    def __len__(self) -> int:
        """The number of symbols."""
        return len(self.symbols)


class Windows(Ordered):
    """Batches of a stream's windows, in the order of `Ordered`.

    Window i predicts symbols i T + 1 to (i + 1) T from the T that begin at i T, so each
    symbol but the very first is predicted once in an epoch. A batch is a dict: `ids`
    (B, T) int32, `mask` (B, T) bool, `y` (B, T) int32, the next symbol or -1 where
    there is none, `index` (B,) int32, `n_valid` int.

    Args:
      stream: the symbols.
      batch_size: windows in one optimizer step.
      length: T.
      seed: of the order.
      fixed: every epoch has the batches of the first one, in an order of its own.
      spans: (N, 2) the first symbol that each window reads, and the first that it does
        not; by default the windows above. None is longer than T.

    Raises:
      ValueError: for a batch size or a length below 1.

    Example:
      >>> stream = Stream("mine", "train", np.arange(6), 6)
      >>> [[batch]] = Windows(stream, 2, 3).epoch(0, shuffle=False)
      >>> batch["ids"].tolist(), batch["y"].tolist()
      ([[0, 1, 2], [3, 4, 0]], [[1, 2, 3], [4, 5, -1]])
    """

    def __init__(
        self,
        stream: Stream,
        batch_size: int,
        length: int,
        *,
        seed: int = 0,
        fixed: bool = False,
        spans: np.ndarray | None = None,
    ):
        if length < 1:
            raise ValueError(f"length={length}: it must be 1 or more")
        if spans is None:
            first = np.arange(0, len(stream) - 1, length)
            spans = np.stack([first, np.minimum(first + length, len(stream) - 1)], 1)
        super().__init__(len(spans), batch_size, seed=seed, fixed=fixed)
        self.stream = stream
        self.length = length
        self._spans = spans

    def _batch(self, rows: np.ndarray, size: int) -> dict:
        ids = np.zeros((size, self.length), np.int32)
        y = np.full((size, self.length), -1, np.int32)
        for place, row in enumerate(rows):
            first, last = self._spans[row]
            ids[place, : last - first] = self.stream.symbols[first:last]
            y[place, : last - first] = self.stream.symbols[first + 1 : last + 1]
        index = np.full(size, -1, np.int32)
        index[: len(rows)] = rows
        return {
            "ids": ids,
            "mask": y >= 0,
            "y": y,
            "index": index,
            "n_valid": len(rows),
        }


def load_stream(
    name: str,
    split: str,
    *,
    tokenizer: Tokenizer | None = None,
    count: int | None = None,
    fewer: bool = False,
    fetch: bool = True,
) -> Stream:
    """One split of a corpus.

    Args:
      name: "wikitext2", "enwik8", or a text file of the user's, whose first nine tenths
        are for training, and half of the rest each for "dev" and "test".
      split: "train", "dev" or "test".
      tokenizer: of the model; without one the symbols are bytes.
      count: only so many symbols from the start.
      fewer: whether there may be fewer than `count`.
      fetch: whether to fetch a pinned archive that is missing.

    Raises:
      DataError: for a name or split that there is not, or too few symbols.
      ArchiveError: when an archive cannot be had.

    Example:
      >>> load_stream("wikitext", "dev")
      Traceback (most recent call last):
      ...
      splitjax.data.table.DataError: no corpus 'wikitext': did you mean 'wikitext2'? ...
    """
    if split not in SPLITS:
        raise DataError(f"no split {split!r}: {nearest(split, SPLITS)}")
    if count is not None and count < 2:
        raise DataError(f"count={count}: a stream has two symbols or more")
    content = _content(name, split, fetch)
    if tokenizer is None:
        symbols, vocab = np.frombuffer(content[:count], np.uint8), 256
    else:
        begun = content if count is None else content[: WIDEST * count]
        # A character of several bytes may be cut at either end.
        symbols, vocab = tokenizer.ids(begun.decode("utf-8", "ignore")), tokenizer.vocab
        if count is not None and len(symbols) < count:
            symbols = tokenizer.ids(content.decode("utf-8", "ignore"))
        symbols = symbols[:count]
    if count is not None and len(symbols) < count and not fewer:
        raise DataError(
            f"{name} ({split}) has {len(symbols)} symbols, fewer than {count}"
        )
    return Stream(name, split, symbols, vocab)


def _content(name: str, split: str, fetch: bool) -> bytes:
    if name == "wikitext2":
        path = archive.folder(name, fetch=fetch) / f"{split}.raw.gz"
        return gzip.decompress(path.read_bytes())
    if name == "enwik8":
        path = archive.folder(name, fetch=fetch) / "enwik8.gz"
        return _part(gzip.decompress(path.read_bytes()), split)
    if pathlib.Path(name).is_file():
        return _part(pathlib.Path(name).read_bytes(), split)
    raise DataError(f"no corpus {name!r}: {nearest(name, CORPORA)}; or a text file")


def _part(content: bytes, split: str) -> bytes:
    """Nine tenths for training, a twentieth each for the others."""
    ends = {"train": (0, 90), "dev": (90, 95), "test": (95, 100)}[split]
    first, last = (len(content) * end // 100 for end in ends)
    return content[first:last]
