"""What an attacker is after: pictures, or words, behind the rows of a message."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from splitjax.core.message import mask_of
from splitjax.core.tree import Tree, path_name
from splitjax.privacy.rows import matrix

WORDS = "word/embedding"  # how the path of a table of word embeddings ends


@dataclasses.dataclass(frozen=True)
class Private:
    """The truth behind the rows of a message.

    Attributes:
      rows: (N, I) pixels from 0 to 1, or the embedding of the word.
      shape: of a picture; () for others.
      ids: (N,) the words, where a row is one.
      table: (V, I) embeddings of all words, likewise; else None.
    """

    rows: np.ndarray
    shape: tuple[int, ...] = ()
    ids: np.ndarray | None = None
    table: np.ndarray | None = None

    @staticmethod
    def join(parts: Sequence["Private"]) -> "Private":
        """One of several, row after row."""
        rows = np.concatenate([part.rows for part in parts])
        first = parts[0]
        if first.ids is None:
            return dataclasses.replace(first, rows=rows)
        ids = np.concatenate([part.ids for part in parts if part.ids is not None])
        return dataclasses.replace(first, rows=rows, ids=ids)


def private_of(
    batch: dict, message: Tree, params: Tree
) -> tuple[np.ndarray, np.ndarray, Private]:
    """Matches the rows of a message with what they were made of.

    A message with a token axis has a row for each real token, whose truth is the word's
    embedding. Other messages have one for an example: its picture, its numbers, or the
    mean embedding of its words.

    Args:
      batch: of the data, with its `index` and `n_valid`.
      message: as decoded.
      params: of the first segment, for the embeddings of words.

    Returns:
      (N, J) rows, (N,) the examples they belong to, and the truth.

    Raises:
      ValueError: for a text whose embeddings are not in the first segment.
    """
    valid, size = int(batch["n_valid"]), len(batch["y"])
    index = np.asarray(batch["index"])
    if "ids" not in batch:
        [name] = [k for k in batch if k not in ("y", "index", "n_valid", "mask")]
        given = np.asarray(batch[name])
        rows = np.asarray(matrix(message, 1))[:valid]
        truth = given[:valid].reshape(valid, -1).astype(np.float64)
        if given.dtype == np.uint8:
            truth /= 255
        shape = given.shape[1:] if given.ndim == 4 else ()
        return rows, index[:valid], Private(truth, shape)
    ids, mask = np.asarray(batch["ids"]), np.asarray(batch["mask"])
    table = _words(params)
    index = np.tile(index, len(ids) // size)
    floats = [a for a in jax.tree.leaves(message) if a.dtype.kind == "f"]
    if mask_of(message) is not None and all(a.ndim == 3 for a in floats):
        rows = np.asarray(matrix(message, 2))[mask.reshape(-1)]
        words = ids[mask]
        examples = np.repeat(index, mask.sum(1))
        return rows, examples, Private(table[words], (), words, table)
    rows = np.asarray(matrix(message, 1))
    keep = index >= 0
    texts = zip(ids[keep], mask[keep], strict=True)
    means = np.stack([table[text[real]].mean(0) for text, real in texts])
    return rows[keep], index[keep], Private(means)


def _words(params: Tree) -> np.ndarray:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    found = [leaf for path, leaf in leaves if path_name(path).endswith(WORDS)]
    if not found:
        raise ValueError(
            f"the first segment has no leaf .../{WORDS}: there is nothing to compare a "
            "reconstruction of the text with"
        )
    return np.asarray(found[0], np.float64)


def token_recovery(
    private: Private,
    guess: np.ndarray,
    rows: np.ndarray,
    example: np.ndarray,
    name: str,
) -> dict[str, float]:
    """How many words are the nearest in the table to what was reconstructed.

    Words that stand in nine texts of ten (marks of beginning and end) do not count.

    Args:
      private: the truth.
      guess: (M, I) reconstructed embeddings.
      rows: (M,) which rows of the truth they stand for.
      example: (N,) of the truth.
      name: of the attack.

    Returns:
      The share of words that were recovered, and that of the commonest word.
    """
    assert private.ids is not None and private.table is not None
    words = private.ids[rows]
    texts = len(np.unique(example[rows]))
    pairs = np.unique(np.stack([words, example[rows]]), axis=1)
    seen, times = np.unique(pairs[0], return_counts=True)
    counted = ~np.isin(words, seen[times >= 0.9 * texts])
    if not counted.any():
        return {}
    table = private.table.astype(np.float32)
    half = (table * table).sum(1) / 2
    right = 0
    for start in range(0, len(words), 512):
        part = slice(start, start + 512)
        nearest = (guess[part].astype(np.float32) @ table.T - half).argmax(1)
        right += int(((nearest == words[part]) & counted[part]).sum())
    commonest = np.unique(words[counted], return_counts=True)[1].max()
    return {
        f"{name}_token_recovery": right / int(counted.sum()),
        "token_chance": float(commonest / counted.sum()),
    }
