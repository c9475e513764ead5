"""Distance correlation: how much what is sent depends on what is kept."""

import jax
import jax.numpy as jnp


def distance_correlation(
    x: jax.Array, z: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """How much z depends on x, from 0 (independent) to 1 (a motion and a scaling).

    With `a_ij = |x_i - x_j|`, `A` that matrix less its row and column means plus its
    mean, and `B` likewise of z:

        dCor = sqrt(<A, B>) / (<A, A> <B, B>)^(1/4)

    Of n independent rows of one width it is of the order n^(-1/2), and it grows with
    the width: a small sample looks dependent, so compare equal sizes. A constant side
    has correlation 0. Gradients are finite everywhere: the root of a distance of zero
    (rows that coincide, the diagonal) passes none.

    Args:
      x: (B, ...) float or integer; all axes but the first are one row.
      z: (B, ...) likewise.
      mask: (B,) bool; rows with False enter nowhere.

    Returns:
      float32 scalar in [0, 1].

    Raises:
      ValueError: for fewer than 2 rows, or unlike numbers of them.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[0.0, 1.0], [2.0, 5.0], [4.0, 4.0]])
      >>> round(float(distance_correlation(x, 3 * x[:, ::-1] + 7)), 4)
      1.0

    Reference:
      G. Szekely, M. Rizzo, N. Bakirov, "Measuring and testing dependence by correlation
      of distances", 2007, arXiv:0803.4101; the biased (V-statistic) form.

    Differs:
      Masked rows, and distances below 6e-4 of the rows' own size count as zero, which
      is where float32 cannot tell them from it.
    """
    if x.shape[0] != z.shape[0]:
        raise ValueError(f"x has {x.shape[0]} rows and z {z.shape[0]}: give pairs")
    if x.shape[0] < 2:
        raise ValueError(
            f"distance correlation of {x.shape[0]} row(s) is undefined: it compares "
            "pairs of rows. Take a batch of 2 or more."
        )
    valid = jnp.ones(x.shape[0]) if mask is None else mask
    valid = valid.astype(jnp.float32)
    a, b = (_centered(_distances(rows, valid), valid) for rows in (x, z))
    pairs = jnp.maximum(valid.sum(), 1.0) ** 2
    # Each variance is positive where it is not a rounding error of a constant side.
    ratio = _safe_root(_mean(a * a, pairs)) * _safe_root(_mean(b * b, pairs))
    known = ratio > 0
    square = _mean(a * b, pairs) / jnp.where(known, ratio, 1.0)
    return _safe_root(jnp.clip(jnp.where(known, square, 0.0), 0.0, 1.0))


def _mean(a, pairs):
    return a.sum() / pairs


def _safe_root(a: jax.Array) -> jax.Array:
    """The root, whose gradient at 0 is 0 and not infinite."""
    positive = a > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, a, 1.0)), 0.0)


def _distances(rows: jax.Array, valid: jax.Array) -> jax.Array:
    flat = rows.reshape(rows.shape[0], -1).astype(jnp.float32)
    # Padding may hold anything, and 0 * NaN is NaN.
    flat = jnp.where(valid[:, None] > 0, flat, 0.0)
    flat = flat - flat.sum(0, keepdims=True) / jnp.maximum(valid.sum(), 1.0)
    product = jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.diagonal(product)
    between = squares[:, None] + squares[None, :] - 2 * product
    # What is smaller than its own rounding is the distance of rows that coincide.
    least = 4e-7 * (squares[:, None] + squares[None, :])
    return _safe_root(jnp.where(between > least, between, 0.0))


def _centered(d: jax.Array, valid: jax.Array) -> jax.Array:
    count = jnp.maximum(valid.sum(), 1.0)
    d = d * valid[:, None] * valid[None, :]
    rows = d.sum(1, keepdims=True) / count
    columns = d.sum(0, keepdims=True) / count
    return (d - rows - columns + d.sum() / count**2) * (valid[:, None] * valid[None, :])
