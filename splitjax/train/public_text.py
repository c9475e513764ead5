"""Public texts, from which the code at a narrow cut is made."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from splitjax import data
from splitjax.core.tree import Tree
from splitjax.data.batches import model_inputs

BATCH_SIZE, MAX_LENGTH = 64, 64


def public_batches(
    names: Sequence[str], tokenizer: Any, *, pairs: bool, types: bool
) -> Iterator[Tree]:
    """Inputs of a model from the training texts of some data sets, without end.

    Args:
      names: data sets as `splitjax.data.load` knows them.
      tokenizer: the model's.
      pairs: whether the model reads two texts in one sequence. Then data sets without
        second texts pair each text with the next one.
      types: whether the model reads token types.
    """
    first: list[str] = []
    second: list[str] = []
    for name in names:
        table = data.load(name, "train")
        one, other = table.text_a, table.text_b
        if pairs:
            first += one
            second += other or one[1:] + one[:1]
        else:
            first += list(dict.fromkeys([*one, *(other or [])]))
    labels = np.zeros(len(first), np.float32)
    table = data.Table("public", "train", first, second if pairs else None, labels, 0)
    encoded = tokenizer.encode(table, max_length=MAX_LENGTH)
    if not types:
        encoded = dataclasses.replace(encoded, types=None)
    batches = data.Batches(encoded, BATCH_SIZE, group_by_length=True)
    epoch = 0
    while True:
        for [batch] in batches.epoch(epoch):
            yield model_inputs(batch)
        epoch += 1
