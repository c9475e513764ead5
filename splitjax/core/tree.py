"""Pytrees seen through the paths of their leaves, and leaves sorted by kind."""

import difflib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def path_name(path: tuple) -> str:
    """Joins a key path of `jax.tree_util` with "/".

    A box of Flax (an NNX variable, a Linen `Partitioned`) has the name of its place:
    the attribute "value" that it holds is no part of the path, so that boxed and plain
    parameters are chosen alike.

    Example:
      >>> import jax
      >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"a": {"kernel": 1.0}})
      >>> path_name(path)
      'a/kernel'
    """
    parts = []
    for key in path:
        if getattr(key, "name", None) == "value" and parts:
            continue
        for attribute in ("key", "name", "idx"):
            if hasattr(key, attribute):
                parts.append(str(getattr(key, attribute)))
                break
        else:
            parts.append(str(key))
    return "/".join(parts)


def flat(tree: Tree) -> dict[str, Any]:
    """The leaves of a tree by their paths.

    Example:
      >>> flat({"layer_0/ffn": {"dropped": 0.5}, "norm": 1.0})
      {'layer_0/ffn/dropped': 0.5, 'norm': 1.0}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def where(
    pattern: str, *, is_leaf: Callable[[Any], bool] | None = None
) -> Callable[[Tree], Tree]:
    """Chooses leaves by a regular expression on their path.

    Args:
      pattern: matched against the whole "/"-joined path of a leaf.
      is_leaf: as in `jax.tree.map`; `factorize` passes one that keeps a Factor whole.

    Returns:
      A function from a tree to a tree of bools of the same structure, as `optax.masked`
      takes it.

    Raises:
      ValueError: on use, when no leaf matches; the message lists the leaves.

    Example:
      >>> where(".*/kernel")({"a": {"kernel": 1.0, "bias": 2.0}})
      {'a': {'bias': False, 'kernel': True}}
    """
    compiled = re.compile(pattern)

    def mask(tree: Tree) -> Tree:
        names: list[str] = []

        def matches(path, _leaf):
            names.append(path_name(path))
            return compiled.fullmatch(names[-1]) is not None

        chosen = jax.tree_util.tree_map_with_path(matches, tree, is_leaf=is_leaf)
        if not any(jax.tree.leaves(chosen)):
            listing = "\n  ".join(names) or "(the tree has no leaves)"
            raise ValueError(f"where({pattern!r}) matches no leaf of:\n  {listing}")
        return chosen

    return mask


def is_float(leaf: Any) -> bool:
    """Tells whether a leaf (array or its spec) takes a gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> is_float(jnp.ones(2)), is_float(jnp.arange(2))
      (True, False)
    """
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def split_floats(tree: Tree) -> tuple[Tree, Tree]:
    """Parts a tree into its floating leaves and the rest; None stands in the gaps.

    Example:
      >>> import numpy as np
      >>> split_floats({"h": np.ones(1), "ids": np.arange(1)})
      ({'h': array([1.]), 'ids': None}, {'h': None, 'ids': array([0])})
    """
    floats = jax.tree.map(lambda a: a if is_float(a) else None, tree)
    rest = jax.tree.map(lambda a: None if is_float(a) else a, tree)
    return floats, rest


def combine(first: Tree, second: Tree) -> Tree:
    """Fills the gaps (None) of one tree from another: undoes `split_floats`.

    Example:
      >>> combine({"a": 1, "b": None}, {"a": None, "b": 2})
      {'a': 1, 'b': 2}
    """
    return jax.tree.map(
        lambda a, b: b if a is None else a, first, second, is_leaf=lambda a: a is None
    )


def spec_of(tree: Tree) -> Tree:
    """Shapes and dtypes of a tree of arrays, as `jax.ShapeDtypeStruct` leaves.

    Example:
      >>> import numpy as np
      >>> spec_of({"h": np.ones((2, 3), np.float32)})
      {'h': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def nearest(name: str, names: list[str] | tuple[str, ...]) -> str:
    """A phrase that names the likeliest meant word, and lists them all.

    Example:
      >>> nearest("layer_O", ["layer_0", "head"])
      "did you mean 'layer_0'? There are: layer_0, head"
    """
    listing = f"There are: {', '.join(names)}"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? {listing}" if close else listing
