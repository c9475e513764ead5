"""Rotary positions: pairs of a head's dimensions are turned by the token's place."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.tree import Tree
from splitjax.models.decoder_config import DecoderConfig


def rotate(
    x: jax.Array, positions: jax.Array, base: float, *, interleaved: bool
) -> jax.Array:
    """Turns pair i of each head by the angle `position * base**(-2 i / width)`.

    Args:
      x: (B, T, H, W), queries or keys, W even.
      positions: (B, T) int32.
      base: of the angles.
      interleaved: whether a pair is (2i, 2i + 1), and not (i, i + W / 2).

    Returns:
      (B, T, H, W) of x's dtype; the angles are of float32.

    Example:
      >>> x = jnp.array([[[[1.0, 0.0]]]])
      >>> rotate(x, jnp.array([[1]]), 1e4, interleaved=True).round(4).tolist()
      [[[[0.5403000116348267, 0.8414999842643738]]]]

    Reference:
      Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021
      (arXiv:2104.09864), equation 34.

    Differs: the order of the pairs is a choice; the paper's is `interleaved`.
    """
    width = x.shape[-1]
    speeds = 1.0 / base ** (np.arange(0, width, 2, dtype=np.float32) / width)
    angles = positions.astype(jnp.float32)[..., None, None] * jnp.asarray(
        speeds, jnp.float32
    ).reshape(1, 1, 1, -1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    wide = x.astype(jnp.float32)
    if interleaved:
        a, b = wide[..., ::2], wide[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1)
        return turned.reshape(x.shape).astype(x.dtype)
    a, b = jnp.split(wide, 2, -1)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return turned.astype(x.dtype)


def halved(config: DecoderConfig, params: Tree) -> tuple[DecoderConfig, Tree]:
    """The same model with its rotated pairs as (i, i + W / 2): for a folder.

    Args:
      config: of a model with interleaved pairs; another is returned as it is.
      params: by stage name, dense.

    Example:
      >>> kernel = jnp.arange(4.0).reshape(1, 4)
      >>> attention = {"query": {"kernel": kernel}, "key": {"kernel": kernel}}
      >>> small = DecoderConfig(width=4, heads=1, kv_heads=1, interleaved=True)
      >>> _, new = halved(small, {"layer_0/attention": attention})
      >>> new["layer_0/attention"]["query"]["kernel"].tolist()
      [[0.0, 2.0, 1.0, 3.0]]
    """
    if not config.interleaved:
        return config, params

    def one(leaf):
        kernel = leaf["kernel"]
        pairs = kernel.reshape(len(kernel), -1, config.head_width // 2, 2)
        return {**leaf, "kernel": pairs.swapaxes(2, 3).reshape(kernel.shape)}

    new = dict(params)
    for name, stage in params.items():
        if name.endswith("/attention"):
            new[name] = {
                **stage,
                "query": one(stage["query"]),
                "key": one(stage["key"]),
            }
    return dataclasses.replace(config, interleaved=False), new
