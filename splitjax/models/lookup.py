"""A table of embeddings, which may be a factor."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.core.factor import materialize
from splitjax.models.weight import weight


class Lookup(nn.Module):
    """y = embedding[ids]. Linen's own layer refuses a factor.

    Parameters: `embedding` (V, D), float32. A factor is made dense on each call. An id
    outside of the table gives NaN. Without ids the table itself comes back.

    Attributes:
      rows: V.
      width: D.
      init_std: of a fresh table.

    Raises:
      ValueError: when a table has another shape than (V, D).

    Example:
      >>> layer = Lookup(3, 2)
      >>> ids = jnp.array([[0, 2]])
      >>> layer.apply(layer.init(jax.random.key(0), ids), ids).shape
      (1, 2, 2)
    """

    rows: int
    width: int
    init_std: float = 0.02

    @nn.compact
    def __call__(self, ids: jax.Array | None = None) -> jax.Array:
        """Rows (..., D) of the ids (...), int; of None all rows (V, D)."""
        shape = (self.rows, self.width)
        init = nn.initializers.normal(self.init_std)
        table = weight(self, "embedding", shape, init)
        table = materialize(table)
        return table if ids is None else jnp.take(table, ids, axis=0)
