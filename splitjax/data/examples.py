"""Batches as examples, each a batch of one: what single gradients are taken of."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from splitjax.core.tree import Tree
from splitjax.data.batches import model_inputs


def examples_of(batch: dict[str, Any]) -> tuple[Tree, np.ndarray]:
    """A batch as examples, each a batch of one, and which of them are real.

    Two towers have their rows apart, example i in rows i and B + i: it has both.

    Example:
      >>> ids = np.array([[1], [2], [3], [4]])
      >>> batch = {"ids": ids, "y": np.zeros(2), "n_valid": 1}
      >>> made, valid = examples_of(batch)
      >>> made["x"]["ids"][:, :, 0].tolist(), made["target"]["y"].shape, valid.tolist()
      ([[1, 3], [2, 4]], (2, 1), [True, False])
    """
    count = len(batch["y"])

    def apart(leaf):
        leaf = np.asarray(leaf)
        return np.swapaxes(leaf.reshape(-1, count, *leaf.shape[1:]), 0, 1)

    target = {"y": np.asarray(batch["y"])[:, None], "n_valid": np.ones(count, np.int32)}
    made = {"x": jax.tree.map(apart, model_inputs(batch)), "target": target}
    return made, np.arange(count) < batch["n_valid"]


def first_examples(
    epoch: Iterable[list[dict[str, Any]]], count: int
) -> Iterator[tuple[Tree, np.ndarray]]:
    """The first examples of an epoch, batch by batch, as `factors.fisher` reads them.

    Args:
      epoch: of `Ordered.epoch`, each step one batch.
      count: how many; fewer where the epoch has fewer.

    Example:
      >>> ids = np.array([[1], [2]])
      >>> batch = {"ids": ids, "y": np.zeros(2), "n_valid": 2}
      >>> [valid.tolist() for _, valid in first_examples([[batch]] * 3, 3)]
      [[True, True], [True, False]]
    """
    for [batch] in epoch:
        if count <= 0:
            return
        made, valid = examples_of(batch)
        valid &= np.cumsum(valid) <= count
        count -= int(valid.sum())
        yield made, valid
