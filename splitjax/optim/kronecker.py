"""Kronecker factors of a stack of layers: averages, damped inverses, and their use."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

METHODS = ("cholesky", "eigen")
TINY = 1e-12  # the least trace per row, so that pi is a number
ZERO = 1e-10  # an eigenvalue below it counts as 0
EXACT = jax.lax.Precision.HIGHEST


class Curvature(NamedTuple):
    """Of l layers, or of those of them that a device owns.

    Attributes:
      a: running averages of E[a a^T], (l, I, I) float32; they start as the identity.
      g: of E[g g^T], (l, J, J).
      inverse: by Cholesky: of a and g, damped. By eigen: the eigenvectors of both and
        their eigenvalues (l, I), (l, J).
      plain: (l,) bool: the layer takes the plain gradient, for want of an inverse.
    """

    a: jax.Array
    g: jax.Array
    inverse: tuple[jax.Array, ...]
    plain: jax.Array


def identity(length: int, inputs: int, outputs: int, method: str) -> Curvature:
    """What nothing is known of: factors and inverses are the identity.

    Raises:
      ValueError: for a method that is none of `METHODS`.

    Example:
      >>> identity(2, 3, 1, "cholesky").a.shape
      (2, 3, 3)
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: one of {METHODS}")

    def eye(size):
        return jnp.broadcast_to(jnp.eye(size, dtype=jnp.float32), (length, size, size))

    ones = (jnp.ones((length, inputs)), jnp.ones((length, outputs)))
    inverse = (eye(inputs), eye(outputs), *(ones if method == "eigen" else ()))
    return Curvature(eye(inputs), eye(outputs), inverse, jnp.zeros(length, jnp.bool_))


def averaged(
    old: Curvature, a: jax.Array, g: jax.Array, count: jax.Array, ema_old: float
) -> tuple[Curvature, jax.Array]:
    """Factors with the sums of a step in their averages.

    new = ema_old old + (1 - ema_old) E, with E[a a^T] = a / count and E[g g^T] = g
    count: g is of the mean loss, 1 / count of an example's gradient.

    Args:
      old: what is known.
      a: sums, see `curvature.Taps`; (l, I, I).
      g: (l, J, J).
      count: examples, (l,). A layer with none keeps what it has.
      ema_old: the share of the old.

    Returns:
      The new ones, and (l,) bool: what was left out since a sum is not finite.

    Example:
      >>> start = identity(1, 1, 1, "cholesky")
      >>> two = jnp.full((1, 1, 1), 2.0)
      >>> new, _ = averaged(start, 3 * two, two, jnp.array([2.0]), 0.5)
      >>> float(new.a[0, 0, 0]), float(new.g[0, 0, 0])
      (2.0, 2.5)
    """
    n = jnp.expand_dims(count, (1, 2))
    a, g = a / jnp.maximum(n, TINY), g * n
    good = _all_finite((a, g, count))
    taken = jnp.expand_dims(good & (count > 0), (1, 2))

    def mix(was, new):
        return jnp.where(taken, ema_old * was + (1 - ema_old) * new, was)

    return old._replace(a=mix(old.a, a), g=mix(old.g, g)), ~good


def shifts(a: jax.Array, g: jax.Array, damping: float) -> tuple[jax.Array, jax.Array]:
    """What is added to the diagonals: pi sqrt(damping) and sqrt(damping) / pi.

    pi^2 = (tr a / I) / (tr g / J), the traces not below `TINY` a row: where all inputs
    are 0 (a dead relu), pi is small and not 0 / 0.

    Example:
      >>> a, g = 4 * jnp.eye(3)[None], jnp.eye(2)[None]
      >>> [float(s[0]) for s in shifts(a, g, 0.25)]
      [1.0, 0.25]
    """

    def mean(x):
        return jnp.maximum(jnp.trace(x, axis1=1, axis2=2) / x.shape[-1], TINY)

    pi = jnp.sqrt(mean(a) / mean(g))
    return pi * damping**0.5, damping**0.5 / pi


def inverted(
    known: Curvature, damping: float, method: str
) -> tuple[Curvature, jax.Array]:
    """New inverses of the factors, which stay as they are: damping goes to a copy.

    Returns:
      The curvature, and (l,) bool: where Cholesky has failed, and eigenvectors were
      taken in its place.

    Example:
      >>> start = identity(1, 1, 1, "cholesky")
      >>> made, failed = inverted(start, 1.0, "cholesky")
      >>> round(float(made.inverse[0][0, 0, 0]), 3), bool(failed[0])
      (0.5, False)
    """
    if method == "eigen":
        (qa, da), (qg, dg) = _eigen(known.a), _eigen(known.g)
        parts = (qa, qg, da, dg)
        bad = ~_all_finite(parts)
        return known._replace(inverse=parts, plain=bad), bad & False
    shift_a, shift_g = shifts(known.a, known.g, damping)
    ways = _cholesky(known.a, shift_a), _cholesky(known.g, shift_g)
    known_parts = (known.a, known.g)  # of infinities an inverse is 0, and finite
    failed = ~_all_finite((*ways, *known_parts))

    def again(ways):
        repaired = _by_eigen(known.a, shift_a), _by_eigen(known.g, shift_g)
        pick = jnp.expand_dims(failed, (1, 2))
        return tuple(
            jnp.where(pick, new, old) for new, old in zip(repaired, ways, strict=True)
        )

    made = jax.lax.cond(failed.any(), again, lambda ways: ways, ways)
    bad = ~_all_finite((*made, *known_parts))
    return known._replace(inverse=made, plain=bad), failed


def preconditioned(known: Curvature, grads: jax.Array, damping: float) -> jax.Array:
    """a^-1 W g^-1 for gradients W (l, I, J), or W where there is no inverse.

    By eigen: Qa [(Qa^T W Qg) / (da dg^T + damping)] Qg^T.

    Example:
      >>> start = identity(1, 1, 1, "eigen")
      >>> float(preconditioned(start, jnp.full((1, 1, 1), 3.0), 0.5)[0, 0, 0])
      2.0
    """

    def times(*matrices):
        first, *rest = matrices
        for one in rest:
            first = jnp.matmul(first, one, precision=EXACT)
        return first

    left, right, *values = known.inverse
    if not values:
        made = times(left, grads, right)
    else:
        da, dg = values
        inner = times(left.mT, grads, right)
        inner = inner / (jnp.expand_dims(da, 2) * jnp.expand_dims(dg, 1) + damping)
        made = times(left, inner, right.mT)
    return jnp.where(jnp.expand_dims(known.plain, (1, 2)), grads, made)


def _cholesky(factor: jax.Array, shift: jax.Array) -> jax.Array:
    """The inverse of factor + shift I; NaN where that is not positive definite."""
    eye = jnp.eye(factor.shape[-1], dtype=factor.dtype)[None]
    lower = jnp.linalg.cholesky(factor + jnp.expand_dims(shift, (1, 2)) * eye)
    right = jnp.broadcast_to(eye, factor.shape)
    return jax.scipy.linalg.cho_solve((lower, True), right)


def _by_eigen(factor: jax.Array, shift: jax.Array) -> jax.Array:
    """Likewise, with eigenvalues that are at least the shift."""
    vectors, values = _eigen(factor)
    values = values + jnp.expand_dims(shift, 1)
    scaled = vectors / jnp.expand_dims(values, 1)
    return jnp.matmul(scaled, vectors.mT, precision=EXACT)


def _eigen(factor: jax.Array) -> tuple[jax.Array, jax.Array]:
    values, vectors = jnp.linalg.eigh(factor)
    return vectors, jnp.where(values < ZERO, 0.0, values)


def _all_finite(parts: tuple[jax.Array, ...]) -> jax.Array:
    """(l,) bool."""
    found = [jnp.isfinite(x).reshape(len(x), -1).all(1) for x in parts]
    return jnp.stack(found).all(0)
