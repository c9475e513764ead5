"""Messages and inputs as matrices: a row for an example, or for a token."""

from typing import Any

import jax
import jax.numpy as jnp

from splitjax.core.message import mask_of
from splitjax.core.tree import Tree, is_float


def aligned(x: Tree, y: Tree) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """Inputs and outputs of a stage as matching rows, and which of them are valid.

    A mask of (B,) or (B, T) says how many leading axes number the rows; without one it
    is the first. The leaves of a tree stand side by side: floats, or else integers.

    Args:
      x: the input: an array, or a dict with leaves of one set of leading axes.
      y: the output, likewise.

    Returns:
      `((N, I), (N, J))` float32, and the mask (N,) or None.

    Raises:
      ValueError: for ids, which are names and no quantities.

    Example:
      >>> import jax.numpy as jnp
      >>> h = {"h": jnp.ones((2, 3, 4)), "mask": jnp.ones((2, 3), bool)}
      >>> (x, y), mask = aligned(jnp.ones((2, 3, 5)), h)
      >>> x.shape, y.shape, mask.shape
      ((6, 5), (6, 4), (6,))
    """
    mask = mask_of(y)
    mask = mask_of(x) if mask is None else mask
    lead = 1 if mask is None else mask.ndim
    rows = matrix(x, lead), matrix(y, lead)
    return rows, None if mask is None else mask.reshape(-1)


def matrix(tree: Tree, lead: int) -> jax.Array:
    """The leaves of a tree beside each other, a row for each place of `lead` axes.

    Example:
      >>> import jax.numpy as jnp
      >>> matrix({"h": jnp.ones((2, 3, 4)), "skip": jnp.ones((2, 3, 1))}, 2).shape
      (6, 5)
    """
    if isinstance(tree, dict) and "ids" in tree and "h" not in tree:
        raise ValueError(
            "ids are names, not quantities: give their embeddings (or attach the loss "
            "to a stage behind the embedding)"
        )
    leaves = [
        leaf
        for leaf in jax.tree.leaves(tree)
        if leaf.ndim >= lead and leaf.dtype != jnp.bool_
    ]
    leaves = [leaf for leaf in leaves if is_float(leaf)] or leaves
    flat = []
    for leaf in leaves:
        count = 1
        for size in leaf.shape[:lead]:
            count *= size
        flat.append(leaf.reshape(count, -1).astype(jnp.float32))
    return jnp.concatenate(flat, 1)
