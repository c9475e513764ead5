"""Which tensor of a Hugging Face folder is which leaf of our parameters."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from splitjax.core.tree import Tree


class Entry(NamedTuple):
    """One leaf of the parameters and the tensor that holds it.

    Attributes:
      stage: the stage's name.
      path: keys inside of the stage's parameters.
      tensor: the name in the file, without the model's prefix.
      turned: whether the tensor is (out, in, ...) and the leaf (..., in, out).
      part: (i, n): the leaf is part i of n equal ones along the tensor's last axis.
      instead: the tensor to read where `tensor` is absent.
      joined: axes of the turned tensor that are one, the first, of the leaf.
    """

    stage: str
    path: tuple[str, ...]
    tensor: str
    turned: bool = False
    part: tuple[int, int] = (0, 1)
    instead: str = ""
    joined: tuple[int, ...] = ()


def leaves_of(table: Iterable[Entry], tensors: Mapping[str, np.ndarray]) -> Tree:
    """Float32 parameters by stage name, of the tensors of a file.

    Raises:
      ValueError: when a tensor is missing; all that are missing are named.

    Example:
      >>> entry = Entry("head", ("out", "kernel"), "lm_head.weight", True)
      >>> made = leaves_of([entry], {"lm_head.weight": np.ones((3, 2))})
      >>> made["head"]["out"]["kernel"].shape
      (2, 3)
    """
    params: dict[str, Any] = {}
    missing = []
    for entry in table:
        array = tensors.get(entry.tensor, tensors.get(entry.instead))
        if array is None:
            missing.append(entry.tensor)
            continue
        index, count = entry.part
        if array.shape[-1] % count:
            raise ValueError(
                f"{entry.tensor} is {array.shape}: its last axis is no {count} parts"
            )
        array = np.split(array, count, axis=-1)[index] if count > 1 else array
        array = np.moveaxis(array, (0, 1), (-1, -2)) if entry.turned else array
        array = array.reshape(-1, array.shape[-1]) if entry.joined else array
        node = params.setdefault(entry.stage, {})
        for part in entry.path[:-1]:
            node = node.setdefault(part, {})
        node[entry.path[-1]] = jnp.asarray(array, jnp.float32)
    if missing:
        raise ValueError(f"missing tensors {sorted(set(missing))}")
    return params


def tensors_of(table: Iterable[Entry], params: Tree) -> dict[str, np.ndarray]:
    """The tensors of a file, of dense parameters: undoes `leaves_of`.

    Raises:
      ValueError: when a leaf is missing, or two copies of one tensor differ.

    Example:
      >>> entry = Entry("head", ("out", "kernel"), "lm_head.weight", True)
      >>> params = {"head": {"out": {"kernel": np.ones((2, 3))}}}
      >>> tensors_of([entry], params)["lm_head.weight"].shape
      (3, 2)
    """
    parts: dict[str, dict[int, np.ndarray]] = {}
    for entry in table:
        array = np.asarray(_leaf(params, entry))
        array = array.reshape(*entry.joined, -1) if entry.joined else array
        array = np.moveaxis(array, (-1, -2), (0, 1)) if entry.turned else array
        known = parts.setdefault(entry.tensor, {})
        copy = known.setdefault(entry.part[0], array)
        if copy is not array and not np.array_equal(copy, array):
            raise ValueError(
                f"{entry.stage}/{'/'.join(entry.path)} differs from another layer's "
                "copy; the folder holds one for all"
            )
    return {
        name: np.ascontiguousarray(
            np.concatenate([part[i] for i in range(len(part))], -1)
            if len(part) > 1
            else part[0]
        )
        for name, part in parts.items()
    }


def _leaf(params: Tree, entry: Entry) -> Any:
    node = params
    for part in (entry.stage, *entry.path):
        if not isinstance(node, dict) or part not in node:
            raise ValueError(
                f"save misses the leaf {entry.stage}/{'/'.join(entry.path)}"
            )
        node = node[part]
    return node
