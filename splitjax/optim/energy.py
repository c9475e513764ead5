"""The nearest matrix of a rank, made as large as the one it replaces."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from splitjax.core.precision import wide

LEAST = 1e-4  # the largest singular value of what counts as zero
DEAD = 1e-3  # of the largest scale: below it a channel counts as switched off
EXACT = jax.lax.Precision.HIGHEST


class Projected(NamedTuple):
    """A projected matrix.

    Attributes:
      matrix: (..., I, J).
      alpha: (...), float: by how much the energy that was kept grew, 1 or more. 0 where
        a matrix was left as it was: zeros, or not finite.
    """

    matrix: jax.Array
    alpha: jax.Array


def energy_project(
    matrix: jax.Array,
    rank: int,
    *,
    transfer: bool = True,
    rho: float = 0.0,
    scale_in: jax.Array | None = None,
    scale_out: jax.Array | None = None,
    eps: float = 1e-5,
) -> Projected:
    """Keeps R directions of a matrix and gives them the energy of the rest.

    With `W = U diag(s) V'` and energy E = sum s^2, of which the first R values have K:
    they become `sqrt(alpha) s`, the others `rho s`, and
    `alpha = (E - rho^2 (E - K)) / K`, so that the energy stays. As one factor scales
    all of them, this is `rho W + (sqrt(alpha) - rho) W P` with the projection P on R
    eigenvectors of the small Gram matrix: there is no decomposition of W itself.

    A scale a weighs rows or columns: `diag(a) W` is projected, and what comes out is
    divided by it again, damped: times `a / (a^2 + eps)`.

    Args:
      matrix: (..., I, J), floating; leading axes are a batch. Computed in float32 at
        least.
      rank: R, 1 or more; from min(I, J) on nothing changes.
      transfer: False leaves the values that are kept as they are (alpha is 1).
      rho: what is left of the others, 0 to 1.
      scale_in: (..., I), or None.
      scale_out: (..., J), or None.
      eps: of the damping.

    Returns:
      The matrix, of the dtype given, and alpha. A matrix of (almost) zeros, or one that
      is not finite, stays as it is.

    Raises:
      ValueError: for a rank below 1, a rho out of range, or what is no float matrix.

    Example:
      >>> w = jnp.diag(jnp.array([4.0, 3.0]))
      >>> made = energy_project(w, 1)
      >>> made.matrix.round(3).tolist(), round(float(made.alpha), 4)
      ([[5.0, 0.0], [0.0, 0.0]], 1.5625)

    Reference:
      K. Guo, Z. Lin, X. Xing, F. Liu, X. Xu, "Low-rank Projection and Energy Transfer",
      2022, arXiv:2204.05566, as the authors' public code has it.

    Differs:
      The Gram matrix in the place of a singular value decomposition. A row or column
      whose scale is below a thousandth of the largest is not divided down to zero, but
      keeps its part in the directions that stay: a channel that a norm has switched off
      can come back, and the rank holds. Sharded along its longer side, a matrix costs
      one all-reduce of the Gram matrix; along the shorter one, a gather.
    """
    if matrix.ndim < 2 or not jnp.issubdtype(matrix.dtype, jnp.floating):
        raise ValueError(
            f"a projection needs a matrix of floats: {matrix.shape} {matrix.dtype}"
        )
    if rank < 1 or not 0 <= rho <= 1:
        raise ValueError(
            f"energy_project({rank=}, {rho=}): expected a rank of 1 or more and a rho "
            "from 0 to 1"
        )
    rows, columns = matrix.shape[-2:]
    full = min(rows, columns)
    kind = wide(matrix.dtype)
    if rank >= full:
        return Projected(matrix, jnp.ones(matrix.shape[:-2], kind))
    w, undo = matrix.astype(kind), []
    for scale, axis in ((scale_in, -1), (scale_out, -2)):
        if scale is not None:
            given, inverse = _metric(scale.astype(kind), eps)
            w = w * jnp.expand_dims(given, axis)
            undo.append(jnp.expand_dims(inverse, axis))

    subscripts = "...ij,...ik->...jk" if columns <= rows else "...ji,...ki->...jk"
    gram = jnp.einsum(subscripts, w, w, precision=EXACT, preferred_element_type=kind)
    total = jnp.trace(gram, axis1=-2, axis2=-1)
    # What is not finite is never decomposed: LAPACK may not come back from it.
    finite = jnp.isfinite(total)[..., None, None]
    gram = jnp.where(finite, gram, jnp.eye(full, dtype=kind)[(None,) * (w.ndim - 2)])
    values, vectors = jnp.linalg.eigh(gram)
    v = vectors[..., full - rank :]
    turned = jnp.matmul(gram, v, precision=EXACT)
    kept = jnp.sum(v * turned, (-2, -1))
    some = (values[..., -1] > LEAST**2) & finite[..., 0, 0]
    alpha = jnp.ones_like(kept)
    if transfer:
        alpha = (total - rho**2 * (total - kept)) / jnp.where(some, kept, 1)
    if columns <= rows:
        part = jnp.matmul(w, v, precision=EXACT)
        part = jnp.matmul(part, v.mT, precision=EXACT)
    else:
        part = jnp.matmul(v.mT, w, precision=EXACT)
        part = jnp.matmul(v, part, precision=EXACT)
    new = (jnp.sqrt(alpha)[..., None, None] - rho) * part
    new = new + rho * w if rho else new
    for inverse in undo:
        new = new * inverse
    new = jnp.where(some[..., None, None], new.astype(matrix.dtype), matrix)
    return Projected(new, jnp.where(some, alpha, 0))


def _metric(scale: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """A scale without zeros, and what undoes it."""
    size = jnp.abs(scale)
    top = size.max(-1, keepdims=True)
    least = jnp.broadcast_to(DEAD * top, scale.shape)
    dead = size < least
    given = jnp.where(dead, jnp.where(scale < 0, -least, least), scale)
    given = jnp.where(top == 0, 1, given)  # no channel says anything
    exact = dead | (top == 0)
    return given, jnp.where(exact, 1 / given, given / (given**2 + eps))
