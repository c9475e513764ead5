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

from splitjax.core.message import is_sized
from splitjax.core.tree import Tree, path_name

DTYPES = {
    np.dtype(kind).name: np.dtype(kind)
    for kind in (
        *(np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32),
        *(np.uint64, np.int64, np.float16, np.float32, np.float64),
        *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
    )
}
MAX_LEAVES, MAX_RANK, MAX_TEXT_BYTES = 2**16, 32, 2**24
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
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    sized: bool = False

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
        """The schema of a tree of arrays or specs, `Sized` ones among them.

        Raises:
          WrongSchema: for a dtype that may not cross.
        """
        nodes, treedef = jax.tree_util.tree_flatten_with_path(spec, is_leaf=is_sized)
        leaves = []
        for path, node in nodes:
            array = node.buffer if is_sized(node) else node
            leaves.append(
                [path_name(path), array.dtype.name, list(array.shape), is_sized(node)]
            )
        return cls(_checked(leaves), treedef)

    @functools.cached_property
    def hash(self) -> bytes:
        """Eight bytes that stand for the schema in every frame."""
        return hashlib.blake2b(self.to_bytes(), digest_size=HASH_BYTES).digest()

    @property
    def max_bytes(self) -> int:
        """Bytes of all arrays, sized ones whole: what reading a frame may allocate."""
        return sum(leaf.max_bytes for leaf in self.leaves)

    def to_bytes(self) -> bytes:
        """JSON: a list of `[path, dtype, shape, sized]`."""
        rows = [[a.path, a.dtype, a.shape, a.sized] for a in self.leaves]
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
        nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_sized)
        if len(nodes) != len(self.leaves):
            raise WrongSchema(
                f"the message has {len(nodes)} leaves, the schema {len(self.leaves)}"
            )
        out = []
        for leaf, (path, node) in zip(self.leaves, nodes, strict=True):
            array, used = node, None
            if is_sized(node):
                array, used = node.buffer, int(node.used)
            found = Leaf(
                path_name(path), array.dtype.name, tuple(array.shape), used is not None
            )
            if found != leaf:
                raise WrongSchema(f"the message has {found}, the schema {leaf}")
            if used is not None and not 0 <= used <= leaf.shape[0]:
                raise WrongSchema(
                    f"{leaf.path}: {used} rows are used of {leaf.shape[0]}"
                )
            out.append((leaf, array, used))
        return out


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
        need(isinstance(row, list) and len(row) == 4, row)
        path, dtype, shape, sized = row
        need(isinstance(path, str) and isinstance(sized, bool), row)
        need(isinstance(dtype, str) and dtype in DTYPES, row)
        need(isinstance(shape, list) and len(shape) <= MAX_RANK, row)
        need(all(type(n) is int and 0 <= n < 2**48 for n in shape), row)
        need(bool(shape) or not sized, row)
        leaves.append(Leaf(path, dtype, tuple(shape), sized))
    return tuple(leaves)
