"""The relative position bias of MPNet and T5: a table of distances in buckets."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

FARTHEST = 128


@functools.lru_cache
def buckets(
    length: int, count: int, farthest: int = FARTHEST, causal: bool = False
) -> np.ndarray:
    """The bucket of each pair of positions.

    Half of the buckets are for keys after the query. Of each half, the first half holds
    one distance each; the rest widen with the logarithm up to the farthest distance.

    Args:
      length: T.
      count: how many buckets there are.
      farthest: from which distance on all share the last bucket.
      causal: whether all buckets are for keys before the query; later ones, which a
        decoder never sees, then count as at no distance.

    Returns:
      int32 (T, T), query by key.

    Example:
      >>> buckets(3, 32)
      array([[ 0, 17, 18],
             [ 1,  0, 17],
             [ 2,  1,  0]], dtype=int32)

    Reference:
      Raffel et al., Exploring the Limits of Transfer Learning with a Unified
      Text-to-Text Transformer, 2019 (arXiv:1910.10683).

    Differs: nothing.
    """
    places = np.arange(length)
    distance = places[None, :] - places[:, None]
    half = count if causal else count // 2
    exact = half // 2
    far = np.maximum(-distance, 0) if causal else np.abs(distance)
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(math.log(farthest / exact)) * np.float32(half - exact)
    wide = np.minimum(exact + steps.astype(np.int32), half - 1)
    table = np.where((distance > 0) & (not causal), half, 0) + np.where(
        far < exact, far, wide
    )
    table = table.astype(np.int32)
    table.setflags(write=False)
    return table


class RelativeBias(nn.Module):
    """What each head adds to its scores for the distance of two tokens.

    Every layer holds a copy `embedding` (buckets, H) of one table, so that no leaf is
    tied across a cut.

    Example:
      >>> bias = RelativeBias(32, 2)
      >>> bias.apply(bias.init(jax.random.key(0), 5), 5).shape
      (2, 5, 5)

    Differs: the table is not trained (`stop_gradient`), so that the copies stay equal;
      in the original one trained table serves all layers. Keep weight decay off it by
      the pattern `models.bert.FROZEN`.
    """

    count: int
    heads: int
    farthest: int = FARTHEST
    causal: bool = False

    @nn.compact
    def __call__(self, length: int) -> jax.Array:
        """The bias (H, T, T) for T = `length`, float32."""
        shape = (self.count, self.heads)
        table = self.param(
            "embedding", nn.initializers.normal(0.02), shape, jnp.float32
        )
        table = jax.lax.stop_gradient(table)
        return table.T[:, buckets(length, self.count, self.farthest, self.causal)]
