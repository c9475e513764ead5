"""A kernel as the product of two thin ones: the form that costs the least."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.factor import Factor, dot, materialize, register_factor
from splitjax.core.precision import widened
from splitjax.core.tree import is_float


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


def matrix(kernel: jax.Array, rank: int) -> np.ndarray:
    """A kernel as float64 on the host, fit for a decomposition of a rank.

    Args:
      kernel: (..., I, J), floating; a factor counts as the dense leaf it stands for.
      rank: from 1 to min(I, J).

    Raises:
      ValueError: for a rank outside the range, a kernel of integers, with NaN or
        infinity, or of zeros only, whose factors could not be trained.

    Example:
      >>> matrix(jnp.ones((2, 3)), 3)
      Traceback (most recent call last):
      ...
      ValueError: rank 3 of a kernel (2, 3): it must be from 1 to 2
    """
    kernel = materialize(kernel)
    if not is_float(kernel):
        raise ValueError(f"a low-rank fit needs floats; this leaf is {kernel.dtype}")
    dense = np.asarray(widened(kernel), np.float64)
    if dense.ndim < 2:
        raise ValueError(f"a low-rank fit needs a matrix; this leaf is {dense.shape}")
    full = min(dense.shape[-2:])
    if not 1 <= rank <= full:
        raise ValueError(
            f"rank {rank} of a kernel {dense.shape}: it must be from 1 to {full}"
        )
    if not np.isfinite(dense).all():
        raise ValueError("the kernel holds NaN or infinity: it has no decomposition")
    if not dense.any():
        raise ValueError("the kernel is all zeros: a low-rank fit of it cannot train")
    return dense


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


def balanced(a: np.ndarray, b: np.ndarray, dtype) -> Product:
    """The same product with its singular values shared evenly by both sides.

    Args:
      a: (..., I, R).
      b: (..., R, J).
      dtype: of the factors.

    Example:
      >>> made = balanced(np.array([[9.0]]), np.array([[1.0]]), jnp.float32)
      >>> np.abs(made.a).round(4).tolist(), np.abs(made.b).round(4).tolist()
      ([[3.0]], [[3.0]])
    """
    first, r = np.linalg.qr(a)
    last, s = np.linalg.qr(np.swapaxes(b, -1, -2))
    u, values, v = np.linalg.svd(r @ np.swapaxes(s, -1, -2))
    return halves(first @ u, values, v @ np.swapaxes(last, -1, -2), dtype)


def svd(kernel: jax.Array, rank: int) -> Product:
    """The nearest product of a rank: see `low_rank.fit`, in the form of two factors.

    Example:
      >>> svd(jnp.diag(jnp.array([4.0, 1.0])), 1).materialize().round(4).tolist()
      [[4.0, 0.0], [0.0, 0.0]]
    """
    dense = matrix(kernel, rank)
    left, values, right = np.linalg.svd(dense, full_matrices=False)
    dtype = materialize(kernel).dtype
    parts = left[..., :rank], values[..., :rank], right[..., :rank, :]
    return halves(*parts, dtype)
