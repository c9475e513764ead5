"""Small data that needs no archive: for tests and for a first look."""

import pathlib

import numpy as np

from splitjax.data.table import Table

COLORS = ("red", "blue", "green", "black", "white", "brown")
THINGS = ("dog", "cat", "sky", "car", "tree", "fish")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def toy(split: str = "train", *, rows: int = 64, pairs: bool = False) -> Table:
    """A task that a tiny model can learn: does the text begin with "red"?

    With `pairs` the label is the share of words that two texts have in common.

    Example:
      >>> len(toy(rows=8)), toy(rows=8, pairs=True).classes
      (8, 0)
    """
    random = np.random.default_rng([rows, len(split), pairs])

    def text():
        words = random.choice(COLORS + THINGS, random.integers(2, 9))
        return " ".join([random.choice(("red", "blue")), *words])

    first = [text() for _ in range(rows)]
    if not pairs:
        label = np.array([t.startswith("red") for t in first])
        return Table("toy", split, first, None, label.astype(np.int32), 2)
    second = [text() for _ in range(rows)]
    common = [
        5 * len(set(a.split()) & set(b.split())) / len(set(a.split()) | set(b.split()))
        for a, b in zip(first, second, strict=True)
    ]
    return Table("toy", split, first, second, np.array(common), 0)


def write_tokenizer(folder: str | pathlib.Path) -> pathlib.Path:
    """Writes a word-level tokenizer.json for `toy`; like MiniLM's it pads to 128.

    Example:
      >>> import json, tempfile
      >>> folder = write_tokenizer(tempfile.mkdtemp())
      >>> json.loads((folder / "tokenizer.json").read_text())["padding"]["strategy"]
      {'Fixed': 128}
    """
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    words = {w: i for i, w in enumerate((*SPECIAL, *COLORS, *THINGS))}
    made = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(name, words[name]) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=ends,
    )
    made.enable_padding(length=128)
    made.save(str(folder / "tokenizer.json"))
    return folder
