"""What both ends of a link expect of a message before the first one is sent."""

import dataclasses
import functools
import hashlib
import json
import math
from typing import Any

import jax
import ml_dtypes
import numpy as np

from splitjax.core.message import COLUMNS, has_columns, is_lossless, is_sized
from splitjax.core.tree import Tree, path_name

DTYPES = {
    np.dtype(kind).name: np.dtype(kind)
    for kind in (
        *(np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32),
        *(np.uint64, np.int64, np.float16, np.float32, np.float64),
        *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
    )
}
MAX_LEAVES, MAX_RANK, MAX_TEXT_BYTES, MAX_LEVEL = 2**16, 32, 2**24, 19
HASH_BYTES = 8


class FrameError(ValueError):
    """Bytes that are not what both ends agreed on; nothing of them was used."""


class WrongSchema(FrameError):
    """A message or a schema of other leaves, shapes or dtypes."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a message.

    Attributes:
      path: "/"-joined.
      dtype: a name in `DTYPES`.
      shape: of the array; of the whole buffer when sized.
      sized: whether only the first rows are sent.
      coder: of the bytes: zstandard's effort, or `COLUMNS`; 0 where they cross as they
        are.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    sized: bool = False
    coder: int | str = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row when sized, of the whole array otherwise."""
        shape = self.shape[1:] if self.sized else self.shape
        return math.prod(shape) * DTYPES[self.dtype].itemsize

    @property
    def max_bytes(self) -> int:
        """Bytes of the whole array."""
        return self.row_bytes * (self.shape[0] if self.sized else 1)


@dataclasses.dataclass(frozen=True)
class Schema:
    """The leaves of one tree of arrays, in order.

    Attributes:
      leaves: of the tree.
      treedef: its structure; None for a schema that came over the network. It is no
        part of what the ends agree on: each has its own, by its own program.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> schema = Schema.of({"h": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)})
      >>> schema.to_bytes()
      b'[["h","bfloat16",[2,3],false]]'
      >>> Schema.from_bytes(schema.to_bytes()).hash == schema.hash
      True
    """

    leaves: tuple[Leaf, ...]
    treedef: Any = dataclasses.field(default=None, compare=False)

    @classmethod
    def of(cls, spec: Tree) -> "Schema":
        """The schema of a tree of arrays or specs, `Sized` and `Lossless` among them.

        Raises:
          WrongSchema: for a dtype that may not cross, or a `Lossless` of anything but
            an array.
        """
        nodes, treedef = jax.tree_util.tree_flatten_with_path(spec, is_leaf=_is_one)
        return cls(_checked([_row(_opened(*node)[0]) for node in nodes]), treedef)

    @functools.cached_property
    def hash(self) -> bytes:
        """Eight bytes that stand for the schema in every frame."""
        return hashlib.blake2b(self.to_bytes(), digest_size=HASH_BYTES).digest()

    @property
    def max_bytes(self) -> int:
        """Bytes of all arrays, sized ones whole: what reading a frame may allocate."""
        return sum(leaf.max_bytes for leaf in self.leaves)

    def to_bytes(self) -> bytes:
        """JSON: a list of `[path, dtype, shape, sized]`, and a coder where there is."""
        rows = [_row(leaf) for leaf in self.leaves]
        return json.dumps(rows, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, text: bytes) -> "Schema":
        """Reads what `to_bytes` wrote.

        Raises:
          WrongSchema: for anything else.
        """
        if len(text) > MAX_TEXT_BYTES:
            raise WrongSchema(
                f"a schema of {len(text)} bytes; at most {MAX_TEXT_BYTES} are read"
            )
        try:
            rows = json.loads(bytes(text).decode())
        except (ValueError, RecursionError) as error:
            raise WrongSchema(f"a schema is JSON: {error}") from error
        return cls(_checked(rows))

    def build(self, arrays: list[Any]) -> Tree:
        """The tree of these leaves; a dict by path where the structure is not known."""
        if self.treedef is None:
            return {a.path: array for a, array in zip(self.leaves, arrays, strict=True)}
        return jax.tree_util.tree_unflatten(self.treedef, arrays)

    def match(self, tree: Tree) -> list[tuple[Leaf, Any, int | None]]:
        """Pairs the leaves with a tree's arrays and, when sized, their used rows.

        Raises:
          WrongSchema: when the tree is another.
        """
        nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_one)
        if len(nodes) != len(self.leaves):
            raise WrongSchema(
                f"the message has {len(nodes)} leaves, the schema {len(self.leaves)}"
            )
        out = []
        for leaf, node in zip(self.leaves, nodes, strict=True):
            found, array, used = _opened(*node)
            used = None if used is None else int(used)
            if found != leaf:
                raise WrongSchema(f"the message has {found}, the schema {leaf}")
            if used is not None and not 0 <= used <= leaf.shape[0]:
                raise WrongSchema(
                    f"{leaf.path}: {used} rows are used of {leaf.shape[0]}"
                )
            out.append((leaf, array, used))
        return out


def _is_one(node: Any) -> bool:
    return is_sized(node) or is_lossless(node)


def _opened(path: tuple, node: Any) -> tuple[Leaf, Any, Any]:
    """The leaf that a node makes, its array, and its used rows or None."""
    name, coder, used = path_name(path), 0, None
    if is_lossless(node):
        node, coder = node.leaf, node.coder
    if sized := is_sized(node):
        node, used = node.buffer, node.used
    if not hasattr(node, "dtype"):
        raise WrongSchema(
            f"{name} is a {type(node).__name__}, not an array: does a codec follow "
            "lossless() in a chain? It must be the last."
        )
    return Leaf(name, node.dtype.name, tuple(node.shape), sized, coder), node, used


def _row(leaf: Leaf) -> list:
    row = [leaf.path, leaf.dtype, list(leaf.shape), leaf.sized]
    return [*row, leaf.coder] if leaf.coder else row


def _is_coder(given: Any, dtype: str, shape: list[int]) -> bool:
    if given == COLUMNS:
        return has_columns(dtype, shape)
    return type(given) is int and 0 < given <= MAX_LEVEL


def _checked(rows: Any) -> tuple[Leaf, ...]:
    """Leaves of rows that may come from anyone."""

    def need(holds: bool, what: Any) -> None:
        if not holds:
            raise WrongSchema(
                "expected a list of [path, dtype, shape, sized] with known dtypes; got "
                f"{str(what)[:200]}"
            )

    need(isinstance(rows, list) and len(rows) <= MAX_LEAVES, type(rows))
    leaves = []
    for row in rows:
        need(isinstance(row, list) and len(row) in (4, 5), row)
        path, dtype, shape, sized, *coder = row
        need(isinstance(path, str) and isinstance(sized, bool), row)
        need(isinstance(dtype, str) and dtype in DTYPES, row)
        need(isinstance(shape, list) and len(shape) <= MAX_RANK, row)
        need(all(type(n) is int and 0 <= n < 2**48 for n in shape), row)
        need(bool(shape) or not sized, row)
        need(all(_is_coder(n, dtype, shape) for n in coder), row)
        leaves.append(Leaf(path, dtype, tuple(shape), sized, *coder))
    return tuple(leaves)
