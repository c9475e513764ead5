"""Updates added to parameters, codes among them."""

import jax
import optax

from splitjax.core.tree import Tree, is_float, path_name


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """`optax.apply_updates`, which would round an update into codes without a word.

    Args:
      params: the parameters.
      updates: of their structure.

    Raises:
      TypeError: for floats to be added to a leaf of whole numbers, of a quantized
        kernel say; it names the leaf. An optimizer that knows of the leaf gives zeros
        of its dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> codes = {"codes": jnp.uint8([7])}
      >>> apply_updates(codes, {"codes": jnp.uint8([0])})["codes"].tolist()
      [7]
      >>> apply_updates(codes, {"codes": jnp.zeros(1)})
      Traceback (most recent call last):
      ...
      TypeError: an update of float32 for 'codes', which is uint8: no optimizer can \
move it; give it one of some leaves, as factors.lora.only_adapters(tx), which comes \
outermost
    """

    def check(path, leaf, update):
        if not is_float(leaf) and is_float(update):
            raise TypeError(
                f"an update of {update.dtype} for {path_name(path)!r}, which is "
                f"{leaf.dtype}: no optimizer can move it; give it one of some leaves, "
                "as factors.lora.only_adapters(tx), which comes outermost"
            )

    jax.tree_util.tree_map_with_path(check, params, updates)
    return optax.apply_updates(params, updates)
