"""Which parameters weight decay is for."""

import jax

from splitjax.core.tree import Tree, path_name


def decayed(params: Tree) -> Tree:
    """Which leaves weight decay is for: kernels and embeddings, not biases and norms.

    A relative position bias is a constant here and stays as it is.

    Example:
      >>> import jax.numpy as jnp
      >>> decayed({"wi": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}})
      {'wi': {'bias': False, 'kernel': True}}
    """

    def one(path, leaf):
        name = path_name(path)  # the biases of experts are stacked: (E, J)
        is_bias = "relative_bias" in name or f"/{name}".endswith("/bias")
        return leaf.ndim > 1 and not is_bias

    return jax.tree_util.tree_map_with_path(one, params)
