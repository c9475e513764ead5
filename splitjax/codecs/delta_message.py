"""What crosses of examples that both ends remember."""

import dataclasses
from typing import Any

import jax

from splitjax.core.memory import Ids


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Delta:
    """What crosses in a tick of training.

    Attributes:
      ids: of the examples.
      first: uint8, one bit for each example: whether it is sent whole.
      change: the inner codec's message of the others' rows.
      whole: a `Sized` for each float array: the rows that are sent whole; None where
        even those are quantized.
      due: uint8, one bit for each example: whether its digest is sent, or None.
      digests: uint32, `Sized`, of what the sender remembered, or None.
      rest: the tree without its float arrays.
    """

    ids: Ids
    first: Any
    change: Any
    whole: Any
    due: Any
    digests: Any
    rest: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Direct:
    """What crosses outside of training: no memory has a part in it."""

    message: Any
