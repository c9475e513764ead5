"""Texts to tokens, by the model's own tokenizer."""

import dataclasses
import pathlib

import numpy as np

from splitjax.data.gguf_tokenizer import gguf_tokenizer
from splitjax.data.table import DataError, Table


class SequenceTooLong(DataError):
    """A text with more tokens than the model, or the user, allows."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A table in tokens.

    Attributes:
      ids: one list for each tower (two texts that are read apart), or one list; of N
        int32 arrays.
      types: N int32 arrays where two texts are read as one sequence, else None.
      label: as in the table.
      max_length: tokens of the longest sequence that may occur.
    """

    ids: tuple[list[np.ndarray], ...]
    types: list[np.ndarray] | None
    label: np.ndarray
    max_length: int

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.label)

    def lengths(self) -> np.ndarray:
        """(N,) tokens of the longer tower."""
        by_tower = [[len(ids) for ids in tower] for tower in self.ids]
        return np.array(by_tower).max(0)


class Tokenizer:
    """The tokenizer of a Hugging Face folder, without its own padding or truncation.

    Args:
      folder: has tokenizer.json (MiniLM's pads everything to 128 tokens by itself: that
        is switched off), or one GGUF archive, which holds its tokenizer.

    Raises:
      DataError: when there is neither.

    Example:
      >>> from splitjax.data.synthetic import write_tokenizer
      >>> import tempfile
      >>> tokenizer = Tokenizer(write_tokenizer(tempfile.mkdtemp()))
      >>> table = Table("toy", "train", ["red blue"], None, np.array([0]), 2)
      >>> tokenizer.encode(table).ids[0][0].tolist()
      [2, 5, 6, 3]
    """

    def __init__(self, folder: str | pathlib.Path):
        import tokenizers

        path = pathlib.Path(folder, "tokenizer.json")
        archives = sorted(pathlib.Path(folder).glob("*.gguf"))
        if path.is_file():
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        elif len(archives) == 1:
            self._tokenizer = gguf_tokenizer(archives[0])
        else:
            raise DataError(f"there is no {path}: a model's folder holds its tokenizer")
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @property
    def vocab(self) -> int:
        """How many token ids there are."""
        return self._tokenizer.get_vocab_size()

    def ids(self, text: str) -> np.ndarray:
        """The tokens of one long text, int32 (N,), without special ones around it."""
        self._tokenizer.no_truncation()
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return np.array(encoded.ids, np.int32)

    def text(self, ids: np.ndarray) -> str:
        """The text of tokens, special ones left out."""
        return self._tokenizer.decode(np.asarray(ids).tolist())

    def encode(
        self,
        table: Table,
        *,
        max_length: int = 128,
        towers: bool = False,
        truncate: bool = True,
    ) -> Encoded:
        """Tokenizes a table.

        Args:
          table: the texts.
          max_length: tokens of a sequence at most, special ones counted.
          towers: whether two texts are read apart; otherwise as one sequence with
            types 0 and 1.
          truncate: whether longer ones are cut, of two texts the longer one first.

        Raises:
          SequenceTooLong: when one is longer and `truncate` is False.
          DataError: for towers without second texts.
        """
        if towers and table.text_b is None:
            raise DataError(f"{table.name} has no second text: two towers need one")
        second = table.text_b
        if not truncate:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(max_length, strategy="longest_first")
        columns: list[list] = [table.text_a]
        if second is not None and towers:
            columns.append(second)
        elif second is not None:
            columns = [list(zip(table.text_a, second, strict=True))]
        encoded = [self._tokenizer.encode_batch(column) for column in columns]
        for column in encoded:
            for row, item in enumerate(column):
                if len(item.ids) > max_length:
                    raise SequenceTooLong(
                        f"{table.name} ({table.split}): row {row} has "
                        f"{len(item.ids)} tokens, more than {max_length}; raise "
                        "max_length, or let it be cut off (truncate=True)"
                    )
        ids = tuple([np.array(e.ids, np.int32) for e in column] for column in encoded)
        types = None
        if second is not None and not towers:
            types = [np.array(e.type_ids, np.int32) for e in encoded[0]]
        return Encoded(ids, types, table.label, max_length)
