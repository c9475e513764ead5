"""Which factor an array belongs to: what a transform may do with it."""

import jax

from splitjax.core.factor import Factor, is_factor
from splitjax.core.tree import Tree, path_name


def owners(params: Tree) -> dict[str, Factor]:
    """The innermost factor that holds each array of a tree, by the array's path.

    Arrays outside of factors are not among them.

    Example:
      >>> import jax.numpy as jnp
      >>> from splitjax.core.factor import register_factor
      >>> @register_factor
      ... class Half(Factor):
      ...     half: jax.Array
      >>> list(owners({"kernel": Half(jnp.ones(1)), "bias": jnp.ones(1)}))
      ['kernel/half']
    """
    return _owners(params, ())


def refuse_closed(params: Tree, chosen: Tree) -> None:
    """Raises where a transform of updates was to work on arrays of a closed factor.

    Args:
      params: the parameters.
      chosen: bools, of their structure: a `where` that sees inside of factors.

    Raises:
      ValueError: with the path of the first such array, and the reason.

    Example:
      >>> from splitjax.core.factor import register_factor
      >>> @register_factor
      ... class Codes(Factor):
      ...     codes: jax.Array
      ...     closed = "codes are no numbers"
      >>> refuse_closed({"kernel": Codes(1.0)}, {"kernel": Codes(True)})
      Traceback (most recent call last):
      ...
      ValueError: kernel/codes is closed: codes are no numbers
    """
    found = owners(params)
    for path, yes in jax.tree_util.tree_leaves_with_path(chosen):
        name = path_name(path)
        if yes and name in found and found[name].closed:
            raise ValueError(f"{name} is closed: {found[name].closed}")


def _owners(tree: Tree, above: tuple) -> dict[str, Factor]:
    rows, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: is_factor(node) and node is not tree
    )
    found: dict[str, Factor] = {}
    for path, node in rows:
        if is_factor(node) and node is not tree:
            found |= _owners(node, (*above, *path))
        elif is_factor(tree):
            found[path_name((*above, *path))] = tree
    return found
