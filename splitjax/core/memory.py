"""Memory per example: what a codec remembers of the examples of one batch."""

import dataclasses
from typing import Any

import jax

from splitjax.core.tree import Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ids:
    """Marks, in a message, whose rows it has: so a receiver knows what to look up.

    Attributes:
      array: int32 `[B]`; -1 for a row that is nobody's (the filling of a short batch).
    """

    array: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """In the state of a codec: what it remembers of the examples of one batch.

    A table of all examples is too much for a program to take in and give back (98 MB
    through jit: 66 ms). So a driver keeps it elsewhere (`storage.rows`), fills in the
    rows of a batch before its tick, and takes them out after it. Between ticks the
    state has a blank one, whose fields are None. All that is said here holds for the
    state of any codec; none is known by its name.

    Attributes:
      rows: a tuple of arrays `[B, ...]`, or `[B, T, ...]` of which an example has its
        own first `lengths` alone.
      lengths: int32 `[B]`; zeros where no array has tokens.
      seen: bool `[B]`: whether there is anything to remember yet.
      visits: int32 `[B]`: how often it was renewed since it was last sent whole.
      tokens: for each array whether its second axis is tokens.
    """

    rows: Any = None
    lengths: Any = None
    seen: Any = None
    visits: Any = None
    tokens: tuple[bool, ...] = dataclasses.field(default=(), metadata={"static": True})

    @property
    def is_blank(self) -> bool:
        """Whether it has been taken out."""
        return self.seen is None


def is_memory(node: Any) -> bool:
    """Tells whether a node is a `Memory`.

    Example:
      >>> is_memory(Memory()), is_memory({})
      (True, False)
    """
    return isinstance(node, Memory)


def memories(tree: Tree) -> list[Memory]:
    """The memories in a tree, in order, blank ones too.

    Example:
      >>> len(memories({"a": Memory(), "b": 1}))
      1
    """
    nodes = jax.tree.leaves(tree, is_leaf=is_memory)
    return [node for node in nodes if is_memory(node)]


def fill(tree: Tree, given: list[Memory]) -> Tree:
    """Puts memories in the places of those that a tree has, in order.

    Example:
      >>> fill({"a": Memory(), "b": 1}, [Memory(seen=True)])["a"].seen
      True
    """
    left = iter(given)

    def one(node):
        return next(left) if is_memory(node) else node

    return jax.tree.map(one, tree, is_leaf=is_memory)


def blank(tree: Tree) -> Tree:
    """Takes the memories out of a tree.

    Example:
      >>> blank({"a": Memory(seen=True), "b": 1})["a"].is_blank
      True
    """
    return fill(tree, [Memory(tokens=old.tokens) for old in memories(tree)])


def ids_of(message: Tree) -> Any:
    """The ids that a message carries, or None.

    Example:
      >>> ids_of({"m": Ids(3)}), ids_of({"m": 3}) is None
      (3, True)
    """
    nodes = jax.tree.leaves(message, is_leaf=lambda node: isinstance(node, Ids))
    found = [node.array for node in nodes if isinstance(node, Ids)]
    return found[0] if found else None
