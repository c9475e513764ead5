"""Predictions of one tick have keys of their own."""

import hashlib

import jax
import numpy as np

from splitjax.core.algorithm import At
from splitjax.core.keys import fold
from splitjax.core.tree import Tree


class Predictions:
    """Gives the predictions that an edge makes at a tick each a key.

    They share the tick, and must not share their noise: the difference of two messages
    with equal noise has none. So they are numbered; and since another process at the
    same checkpoint begins to count anew, the input is in the key as well. The same
    inputs in the same order have the same keys in both, and then the same messages.
    """

    def __init__(self):
        self._tick, self._count = -1, 0

    def at(self, at: At, x: Tree) -> At:
        """The place of the next prediction, as the edge alone sees it.

        Args:
          at: the place in the run.
          x: the input.
        """
        again = int(at.tick) == self._tick
        self._tick, self._count = int(at.tick), self._count + 1 if again else 1
        key = fold(at.key, "predict", self._count, *_words(x))
        return At(key, at.step, at.tick, at.slot, apply=at.apply)


def _words(x: Tree) -> list[int]:
    """A digest of an input, in numbers of 32 bits."""
    made = hashlib.blake2b(digest_size=8)
    for leaf in jax.tree.leaves(x):
        array = np.ascontiguousarray(leaf)
        made.update(f"{array.dtype}{array.shape}".encode())
        made.update(array.reshape(-1).view(np.uint8).data)
    return np.frombuffer(made.digest(), "<u4").tolist()
