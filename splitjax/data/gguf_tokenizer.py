"""The tokenizer that a GGUF archive holds, as an object of `tokenizers`."""

import pathlib
from typing import TYPE_CHECKING

from splitjax.data.table import DataError

if TYPE_CHECKING:
    import tokenizers

# Whether each digit is a token of its own, by the archive's `tokenizer.ggml.pre`.
DIGITS_APART = {"gpt-2": False, "smollm": True}
CONTROL = 3  # the type of tokens such as <|im_start|>


def gguf_tokenizer(path: str | pathlib.Path) -> "tokenizers.Tokenizer":
    """Byte-level BPE of the archive's own tokens and merges.

    Control tokens are recognized in a text and never added to one.

    Args:
      path: a GGUF file.

    Raises:
      DataError: when there is none, or for another kind of tokenizer.

    Example:
      >>> gguf_tokenizer("/nowhere.gguf")
      Traceback (most recent call last):
      ...
      splitjax.data.table.DataError: there is no /nowhere.gguf
    """
    import gguf
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"there is no {path}")
    fields = gguf.GGUFReader(path).fields

    def fact(name, absent=()):
        field = fields.get(f"tokenizer.ggml.{name}")
        return absent if field is None else field.contents()

    kind, pre = fact("model", ""), fact("pre", "")
    if kind != "gpt2" or pre not in DIGITS_APART:
        raise DataError(
            f"{path} has a tokenizer {kind!r} that splits as {pre!r}; built here is "
            f"'gpt2' with one of {sorted(DIGITS_APART)}"
        )
    tokens = fact("tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in fact("merges")]
    ids = {token: number for number, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(models.BPE(ids, merges))
    steps = [pre_tokenizers.Digits(individual_digits=True)] if DIGITS_APART[pre] else []
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps, level])
    made.decoder = decoders.ByteLevel()
    special = [
        token
        for token, type_ in zip(tokens, fact("token_type"), strict=False)
        if type_ == CONTROL
    ]
    made.add_special_tokens(special)
    return made
