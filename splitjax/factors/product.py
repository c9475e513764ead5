"""A kernel as the product of two thin ones: the form that costs the least."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.factor import Factor, dot, register_factor


@register_factor
class Product(Factor):
    """A kernel `(I, J)` as `a (I, R) @ b (R, J)`; leading axes are a batch.

    It holds R (I + J) numbers, `LowRank` R (I + J + R). Cut between the two, R numbers
    a token cross. `a` has the input axis, `b` the output axis: a sharding of the dense
    leaf passes to them.

    Example:
      >>> factor = Product(jnp.ones((3, 1)), jnp.ones((1, 2)))
      >>> factor.dot(jnp.ones(3)).tolist(), factor.spec.shape
      ([3.0, 3.0], (3, 2))
    """

    a: jax.Array
    b: jax.Array

    def materialize(self) -> jax.Array:
        """The dense kernel `(..., I, J)`."""
        return self.a @ self.b

    def dot(self, x: jax.Array) -> jax.Array:
        """`x (..., I)` times the kernel, through its R dimensions."""
        return dot(self.b, dot(self.a, x))


def saves(shape: tuple[int, ...], rank: int) -> bool:
    """Whether a product of a rank holds fewer numbers than the dense kernel.

    Example:
      >>> saves((6, 3), 1), saves((6, 3), 2)
      (True, False)
    """
    return rank * (shape[-2] + shape[-1]) < shape[-2] * shape[-1]


def rank_keeping(share: float, shape: tuple[int, ...]) -> int:
    """The largest rank whose product holds at most a share of the dense numbers.

    Args:
      share: from 0 to 1.
      shape: (..., I, J).

    Raises:
      ValueError: for a share outside of (0, 1], or one that is too small for rank 1.

    Example:
      >>> rank_keeping(0.5, (384, 1536)), rank_keeping(0.5, (384, 384))
      (153, 96)
    """
    rows, columns = shape[-2:]
    if not 0 < share <= 1:
        raise ValueError(f"share {share} of a kernel {shape}: it must be from 0 to 1")
    rank = math.floor(share * rows * columns / (rows + columns) + 1e-9)
    if rank < 1:
        least = (rows + columns) / (rows * columns)
        raise ValueError(
            f"share {share} of a kernel {shape} is less than rank 1, which is "
            f"{least:.3f} of it: keep more, or leave this kernel dense"
        )
    return min(rank, rows, columns)


def halves(left: np.ndarray, values: np.ndarray, right: np.ndarray, dtype) -> Product:
    """A product with the singular values shared evenly: both sides learn alike.

    Args:
      left: (..., I, R).
      values: (..., R), not negative.
      right: (..., R, J).
      dtype: of the factors.

    Example:
      >>> one = np.ones((1, 1))
      >>> made = halves(one, np.array([4.0]), one, jnp.float32)
      >>> made.a.tolist(), made.b.tolist()
      ([[2.0]], [[2.0]])
    """
    root = np.sqrt(values)
    a, b = left * root[..., None, :], root[..., :, None] * right
    return Product(jnp.asarray(a, dtype), jnp.asarray(b, dtype))
