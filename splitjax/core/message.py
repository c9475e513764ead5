"""What crosses a link: a pytree, of which some leaves are sent in part."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.core.tree import Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sized:
    """An array of which only the first rows are sent.

    Attributes:
      buffer: an array `[N, ...]`; rows from `used` on are zero.
      used: int32 scalar. It does not cross the link by itself: the length of the
        buffer's bytes says it.

    Example:
      >>> import jax.numpy as jnp
      >>> sized = Sized(jnp.zeros((8, 2)), jnp.int32(3))
      >>> sized.buffer.shape
      (8, 2)
    """

    buffer: Any
    used: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lossless:
    """Marks a leaf whose bytes are entropy-coded when a frame is written.

    Inside a program it is the leaf and nothing else.

    Attributes:
      leaf: an array or a `Sized`.
      coder: zstandard's effort, 1 to 19; or "columns": see `codecs.lossless`.

    Example:
      >>> import jax.numpy as jnp
      >>> Lossless(jnp.zeros(3), 1).leaf.shape
      (3,)
    """

    leaf: Any
    coder: int | str = dataclasses.field(metadata={"static": True})


COLUMNS = "columns"  # the coder of whole numbers by their place on the last axis
MAX_COLUMNS = 2**14  # that it takes


def has_columns(dtype: Any, shape: Sequence[int]) -> bool:
    """Whether an array can be coded by columns: whole numbers of 8 or 16 bits in rows.

    There are at most 2^14 columns.

    Example:
      >>> has_columns("int16", (4, 3)), has_columns("int16", (4,))
      (True, False)
    """
    kind = jnp.dtype(dtype)
    short = kind.kind in "iu" and kind.itemsize <= 2
    return short and len(shape) > 1 and shape[-1] <= MAX_COLUMNS


def is_sized(node: Any) -> bool:
    """Tells whether a node is a `Sized`.

    Example:
      >>> is_sized(Sized(None, None))
      True
    """
    return isinstance(node, Sized)


def is_lossless(node: Any) -> bool:
    """Tells whether a node is a `Lossless`.

    Example:
      >>> is_lossless(Lossless(None, 1))
      True
    """
    return isinstance(node, Lossless)


def tree_bytes(tree: Tree) -> int:
    """Bytes of all leaves of a tree of arrays or specs; a `Sized` counts whole.

    A `Lossless` leaf counts as it is: coded, it is never longer.

    Example:
      >>> import jax.numpy as jnp
      >>> tree_bytes({"h": jnp.zeros((2, 3)), "s": Sized(jnp.zeros(4), jnp.int32(1))})
      40
    """

    def one(node):
        leaves = jax.tree.leaves(node.buffer if is_sized(node) else node)
        return sum(math.prod(a.shape) * jnp.dtype(a.dtype).itemsize for a in leaves)

    return sum(one(node) for node in jax.tree.leaves(tree, is_leaf=is_sized))


def gradient_of(gradient: Tree, m: Tree) -> Tree:
    """The gradient of a message as its backward codec takes it.

    Floats hold the gradient, integer leaves None; a `Sized` leaf keeps its count, which
    both ends know from the message.

    Example:
      >>> import jax.numpy as jnp
      >>> m = {"h": Sized(jnp.ones(2), jnp.int32(1)), "ids": jnp.arange(2)}
      >>> g = gradient_of({"h": Sized(jnp.zeros(2), None), "ids": None}, m)
      >>> g["ids"] is None, int(g["h"].used)
      (True, 1)
    """

    def stop(node):
        return node is None or is_sized(node)

    nodes, treedef = jax.tree.flatten(gradient, is_leaf=stop)
    sent = jax.tree.leaves(m, is_leaf=stop)
    counted = [
        Sized(node.buffer, leaf.used) if is_sized(leaf) else node
        for node, leaf in zip(nodes, sent, strict=True)
    ]
    return jax.tree.unflatten(treedef, counted)


def mask_of(tree: Tree) -> jax.Array | None:
    """The entry "mask" of a dict, or None.

    Example:
      >>> mask_of({"h": 1, "mask": 2}), mask_of(1)
      (2, None)
    """
    return tree.get("mask") if isinstance(tree, dict) else None
