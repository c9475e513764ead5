"""The shapes that an edge has announced: frames of others are not read."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from splitjax.core.tree import Tree
from splitjax.runtime.schema import Schema, WrongSchema

MOST = 64  # each may cost a compilation
MAX_DEPTH = 16


class Shapes:
    """Specs of batches to learn from, and of inputs to predict for.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> spec = {"x": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
      >>> shapes = Shapes()
      >>> shapes.add(Schema.of(spec).to_bytes(), lambda spec: None)
      >>> len(shapes), list(shapes.train()), list(shapes.predict()) == [spec["x"]]
      (1, [], True)
    """

    def __init__(self):
        self._known: dict[bytes, Tree] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._known)

    def __iter__(self) -> Iterator[bytes]:
        """The announcements."""
        return iter(tuple(self._known))

    def __contains__(self, text: bytes) -> bool:
        """Whether this announcement was made."""
        return text in self._known

    def add(self, text: bytes, check: Callable[[Tree], None]) -> None:
        """Takes an announcement: the schema of `{"x", "target", "weight"}` or `{"x"}`.

        Args:
          text: of `Schema.to_bytes`, from anyone; there may be "ids", too.
          check: raises a `WrongSchema` for specs that are not wanted.

        Raises:
          WrongSchema: for anything else, or too many.
        """
        if text in self._known:
            return
        if len(self._known) >= MOST:
            raise WrongSchema(f"at most {MOST} shapes may be announced")
        spec = nest(Schema.from_bytes(text))
        ids = spec.get("ids", jax.ShapeDtypeStruct((0,), np.int32))
        if set(spec) - {"ids"} not in ({"x"}, {"x", "target", "weight"}):
            raise WrongSchema(f"a batch has x, target and weight, or x: {sorted(spec)}")
        if isinstance(ids, dict) or (len(ids.shape), ids.dtype) != (1, np.int32):
            raise WrongSchema(f"a batch has ids as int32 [B], or none: {ids}")
        if Schema.of(spec).to_bytes() != text:
            raise WrongSchema("a shape has one text: leaves in order, and no spaces")
        check(spec)
        self._known[bytes(text)] = spec

    def train(self) -> Iterator[Tree]:
        """Batches to learn from, the latest first."""
        return (spec for spec in reversed(self._known.values()) if "target" in spec)

    def predict(self) -> Iterator[Tree]:
        """Inputs to predict for, the latest first."""
        return (s["x"] for s in reversed(self._known.values()) if "target" not in s)


def nest(schema: Schema) -> Tree:
    """The specs of a schema that came over the network, as nested dicts.

    Raises:
      WrongSchema: for a sized or coded leaf, or paths that do not nest.

    Example:
      >>> import jax.numpy as jnp
      >>> spec = {"x": {"ids": jax.ShapeDtypeStruct((2, 3), jnp.int32)}}
      >>> nest(Schema.from_bytes(Schema.of(spec).to_bytes())) == spec
      True
    """
    tree: dict = {}
    for leaf in schema.leaves:
        *way, name = leaf.path.split("/", MAX_DEPTH)
        node: Any = tree
        for part in way:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        plain = not (leaf.sized or leaf.coder or "/" in name)
        if not plain or not isinstance(node, dict) or name in node:
            raise WrongSchema(f"a batch is nested dicts of arrays: {leaf.path!r}")
        node[name] = jax.ShapeDtypeStruct(leaf.shape, np.dtype(leaf.dtype))
    return tree
