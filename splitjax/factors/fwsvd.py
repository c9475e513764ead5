"""Low rank under weights that are a product: closed forms."""

import warnings
from typing import Any

import jax
import numpy as np

from splitjax.core.factor import is_factor, materialize
from splitjax.factors.product import Product, balanced, matrix

FLOOR = 1e-8  # of a row's weight, in parts of the mean: see `fwsvd`


def fwsvd(kernel: jax.Array, rows: Any, rank: int, *, floor: float = FLOOR) -> Product:
    """The best product of a rank under a weight for each row, in closed form.

    With D = diag(sqrt(rows)) and V the first R right singular vectors of D W, the
    product W V V' has the least sum_i D_i^2 |W_i - (a b)_i|^2, which is the sum of the
    squares of the other singular values of D W. A row without weight is projected like
    all others: nothing is divided by D.

    Args:
      kernel: (..., I, J), floating.
      rows: (..., I), not negative: the sums over outputs of a Fisher, say.
      rank: from 1 to min(I, J).
      floor: least weight of a row, in parts of the mean of its matrix: it decides what
        directions that no weight asks for are spent on.

    Returns:
      Factors of the kernel's dtype.

    Raises:
      ValueError: for weights that are negative, not finite, or of another shape; and as
        `low_rank.fit` does.

    Warns:
      UserWarning: where all weights are zero: the plain decomposition is taken.

    Example:
      >>> import jax.numpy as jnp
      >>> w = jnp.diag(jnp.array([4.0, 3.0]))
      >>> abs(fwsvd(w, jnp.array([1.0, 9.0]), 1).materialize()).round().tolist()
      [[0.0, 0.0], [0.0, 3.0]]

    Reference:
      Hsu et al., Language model compression with weighted low-rank factorization, 2022
      (arXiv:2207.00112), its closed form.
    Differs:
      a is W V instead of the equal D^-1 U S, then both sides are balanced; the floor.
    """
    dense = matrix(kernel, rank)
    weight = np.maximum(weights_of(rows, dense.shape[:-1], axes=1), floor)
    return _closed(dense, weight, np.ones(dense.shape[-1:]), rank, kernel)


def rank_one(
    kernel: jax.Array, weights: Any, rank: int, *, floor: float = FLOOR
) -> Product:
    """The best product of a rank under weights u v', in closed form.

    u are the sums of the weights' rows and v those of their columns: exact where the
    weights are such a product, and a good start for `wsvd` where they are not.

    Args:
      kernel: (..., I, J), floating.
      weights: (..., I, J), not negative.
      rank: from 1 to min(I, J).
      floor: as in `fwsvd`, of u and of v.

    Example:
      >>> import jax.numpy as jnp
      >>> w, f = jnp.diag(jnp.array([4.0, 3.0])), jnp.eye(2) * jnp.arange(2.0)[None]
      >>> abs(rank_one(w, f, 1).materialize()).round().tolist()
      [[0.0, 0.0], [0.0, 3.0]]
    """
    dense = matrix(kernel, rank)
    whole = weights_of(weights, dense.shape)
    u, v = np.maximum(whole.mean(-1), floor), np.maximum(whole.mean(-2), floor)
    return _closed(dense, u, v, rank, kernel)


def _closed(dense, u, v, rank, kernel):
    root = np.sqrt(v)[..., None, :]
    scaled = np.sqrt(u)[..., :, None] * dense * root
    right = np.linalg.svd(scaled, full_matrices=False)[2][..., :rank, :]
    a = (dense * root) @ np.swapaxes(right, -1, -2)
    return balanced(a, right / root, materialize(kernel).dtype)


def weights_of(weights: Any, shape: tuple[int, ...], *, axes: int = 2) -> np.ndarray:
    """Weights as float64, of a mean of 1 for each matrix; ones where all are zero.

    Args:
      weights: of any scale; checked.
      shape: what they must have.
      axes: how many of the last axes are of one matrix: 2 for entries, 1 for rows.

    Raises:
      ValueError: see `fwsvd`.

    Example:
      >>> import jax.numpy as jnp
      >>> weights_of(jnp.array([[1e-12, 3e-12]]), (1, 2)).round(3).tolist()
      [[0.5, 1.5]]
      >>> weights_of(jnp.ones((3, 2)), (2, 3))
      Traceback (most recent call last):
      ...
      ValueError: weights (3, 2) for (2, 3): they lie as (out, in), ...
    """
    if is_factor(weights):
        raise ValueError(
            f"weights of the arrays of a {type(weights).__name__} do not weigh the "
            "entries of its kernel, which are products of them: measure the weights of "
            "materialize(params)"
        )
    if weights is None:
        raise ValueError("no weights were measured for this kernel: see `fisher`")
    found = np.asarray(weights, np.float64)
    if found.shape != tuple(shape):
        turned = axes == 2 and found.shape == (*shape[:-2], *shape[:-3:-1])
        hint = "each entry has one" if axes == 2 else "each row has one: F.sum(-1)"
        if turned:
            hint = "they lie as (out, in), and a kernel is (in, out): transpose them"
        raise ValueError(f"weights {found.shape} for {tuple(shape)}: {hint}")
    if not np.isfinite(found).all():
        raise ValueError("the weights hold NaN or infinity: measure them again")
    if (found < 0).any():
        raise ValueError(
            f"the least weight is {found.min()}: weights are squares, not negative"
        )
    mean = found.mean(tuple(range(-axes, 0)), keepdims=True)
    if not mean.all():
        warnings.warn(
            "all weights of a kernel are zero: it gets the plain decomposition. Were "
            "the gradients of bfloat16 squared before they were made float32?",
            stacklevel=3,
        )
        found, mean = np.where(mean == 0, 1.0, found), np.where(mean == 0, 1.0, mean)
    return found / mean
