"""SmartDeal's loop: slices as sparse powers of two times a small basis."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from splitjax.core.precision import widened
from splitjax.factors.power_of_two import nearest

EXACT = jax.lax.Precision.HIGHEST  # accelerators would round the factors to bfloat16


class Found(NamedTuple):
    """What `decompose` found, and how it went.

    Attributes:
      codes: (..., m, S), each 0 or exactly `+-2^k`.
      basis: (..., S, S), the best for these codes.
      error: (...,) `|W - codes basis| / |W|`, Frobenius norms; 0 for a zero slice.
      first: (...,) that of the start: one rounding, and its best basis.
      last: (...,) that of the last iterate, which is not the best as a rule.
      shift: (...,) int32; the slice was multiplied by `2^shift` first.
    """

    codes: jax.Array
    basis: jax.Array
    error: jax.Array
    first: jax.Array
    last: jax.Array
    shift: jax.Array


@functools.partial(
    jax.jit,
    static_argnames=("iterations", "vector", "min_exp", "max_exp", "retries"),
)
def decompose(
    slices: jax.Array,
    theta: jax.Array | float,
    *,
    iterations: int = 30,
    vector: float = 0.0,
    min_exp: int = -8,
    max_exp: int = 5,
    retries: int = 10,
) -> Found:
    """Slices `W (m, S)` as `C (m, S) @ B (S, S)`, C sparse and of powers of two.

    From C = W, in turn: what is below theta goes, the rest is rounded to the nearest
    power of two; B is the least-squares basis of these codes; C is the least-squares
    coefficient of that basis. The error does not fall from step to step, so the best
    iterate is kept: of those with no more codes than the first one has, the nearest.

    Each slice is by itself, whatever the leading axes are: nothing is sent when they
    are sharded.

    Args:
      slices: (..., m, S), float32 or float64.
      theta: what is smaller becomes zero, in units of the weights. 0 only rounds.
      iterations: how many times C and B are solved for.
      vector: a row whose absolute sum is below `vector * theta` becomes zero whole; 0
        for never.
      min_exp: the least exponent of a code.
      max_exp: the greatest one.
      retries: how often theta is halved where it leaves a column without any code. It
        is done by doubling the slice, which the basis undoes: exact.

    Example:
      >>> w = jnp.array([[0.5, 0.1], [0.0, 1.0], [0.25, 0.05]])
      >>> found = decompose(w, 0.2)
      >>> found.codes.tolist(), bool(found.error <= found.first)
      ([[0.5, 0.0], [0.0, 1.0], [0.25, 0.0]], True)

    Reference:
      SmartExchange, 2020, arXiv 2005.03403, and SmartDeal, 2021, arXiv 2101.01163,
      after the authors' published code.
    Differs:
      That code returns the last iterate and stops on a tolerance; a fixed point stays
      one here. It halves theta and begins anew where a column empties at any time; here
      at the start, and later iterates of that kind lose against the best one. A slice
      above `2^max_exp` is scaled, not clipped. The exponent has a lower bound.
    """
    shift = _shift(slices, theta, min_exp, max_exp, retries)
    w = jnp.ldexp(slices, shift[..., None, None])
    size = jnp.sum(jnp.square(w), (-2, -1))

    def encode(c):
        small = jnp.abs(c) < theta
        if vector:
            row = jnp.sum(jnp.abs(c), -1, keepdims=True)
            small |= row < vector * theta
        codes = nearest(
            jnp.where(small, jnp.zeros_like(c), c), min_exp=min_exp, max_exp=max_exp
        )
        basis = least_squares(codes, w)
        error = jnp.sum(jnp.square(w - _product(codes, basis)), (-2, -1))
        return codes, basis, error

    def step(index, carry):
        kept, last, first, budget = carry
        new = encode(_turn(least_squares(_turn(last[1]), _turn(w))))
        count = jnp.sum(new[0] != 0, (-2, -1))
        better = (index == 0) | ((new[2] < kept[2]) & (count <= budget))

        def pick(a, b):
            axes = tuple(range(better.ndim, a.ndim))
            return jnp.where(jnp.expand_dims(better, axes), a, b)

        first = jnp.where(index == 0, new[2], first)
        budget = jnp.where(index == 0, count, budget)
        return jax.tree.map(pick, new, kept), new, first, budget

    # The coefficients of the basis I are W itself: with it the loop begins.
    eye = jnp.broadcast_to(
        jnp.eye(w.shape[-1], dtype=w.dtype), (*w.shape[:-2], *2 * w.shape[-1:])
    )
    none = jnp.zeros_like(w), eye, size
    start = none, none, size, jnp.zeros(size.shape, jnp.int32)
    kept, last, first, _ = jax.lax.fori_loop(0, iterations + 1, step, start)
    codes, basis, error = kept
    basis = jnp.ldexp(basis, -shift[..., None, None])

    def relative(error):
        return jnp.sqrt(error / jnp.where(size > 0, size, jnp.ones_like(size)))

    error, start, end = (relative(e) for e in (error, first, last[2]))
    return Found(codes, basis, error, start, end, shift)


def keeping(share: float) -> Callable[[jax.Array], jax.Array]:
    """The theta that leaves a share of the entries of a leaf, as `smartdeal.fit` takes.

    It is the magnitude of the smallest one that stays; the start of `decompose` has
    codes for those alone, and no iterate has more. Where a column would have none,
    theta is halved as there is said, and a few more stay.

    Args:
      share: from above 0 to 1; 1 only rounds.

    Raises:
      ValueError: for another share.

    Example:
      >>> float(keeping(0.5)(jnp.array([[4.0, -3.0], [1.0, 2.0]])))
      3.0
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share} of the codes: above 0, and 1 at most")

    def theta(leaf: jax.Array) -> jax.Array:
        size = widened(jnp.abs(leaf)).reshape(-1)
        gone = size.size - max(round(share * size.size), 1)
        return jnp.sort(size)[gone] if gone else jnp.zeros((), size.dtype)

    return theta


def least_squares(a: jax.Array, y: jax.Array) -> jax.Array:
    """The x with the least `|y - a x|`, by normal equations and one refinement.

    A column of a that depends on those before it gets zeros: a solution still, if not
    the shortest one. All is elementwise over the leading axes: no LAPACK call for each
    of many small systems.

    Args:
      a: (..., m, S), S small.
      y: (..., m, k).

    Returns:
      (..., S, k).

    Example:
      >>> a = jnp.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
      >>> least_squares(a, jnp.array([[1.0], [5.0], [3.0]])).tolist()
      [[2.0], [0.0]]
    """
    turned = _turn(a)
    gram = _product(turned, a)
    x = _solve(gram, _product(turned, y))
    return x + _solve(gram, _product(turned, y - _product(a, x)))


def _solve(gram: jax.Array, y: jax.Array) -> jax.Array:
    """Gauss-Jordan of a positive semidefinite matrix; a zero pivot gives a zero."""
    size = gram.shape[-1]
    floor = 4 * size * float(jnp.finfo(gram.dtype).eps)
    diagonal = jnp.diagonal(gram, axis1=-2, axis2=-1)
    work = jnp.concatenate([gram, y], -1)
    for k in range(size):
        pivot = work[..., k, k]
        sound = pivot > floor * diagonal[..., k]
        inverse = jnp.where(sound, 1 / jnp.where(sound, pivot, 1), 0)
        row = work[..., k, :] * inverse[..., None]
        work = work - work[..., :, k, None] * row[..., None, :]
        work = work.at[..., k, :].set(row)
    return work[..., size:]


def _shift(w, theta, min_exp, max_exp, retries):
    """Doublings of each slice, so that its codes are in range and no column empties."""
    column = jnp.max(jnp.abs(w), -2)
    _, top = jnp.frexp(jnp.max(column, -1))
    room = (max_exp - top).astype(jnp.int32)
    least = jnp.min(jnp.where(column > 0, column, jnp.inf), -1)
    floor = jnp.maximum(jnp.asarray(theta, w.dtype), 2.0 ** (min_exp - 1))
    shift = jnp.zeros(least.shape, jnp.int32)
    for _ in range(retries):
        # Just at half of the least power it rounds to zero: a tie goes to the lower.
        scaled = jnp.ldexp(least, shift)
        shift += ((scaled < floor) | (scaled <= 2.0 ** (min_exp - 1))).astype(jnp.int32)
    return jnp.minimum(shift, room)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=EXACT)


def _turn(a: jax.Array) -> jax.Array:
    return jnp.swapaxes(a, -2, -1)
