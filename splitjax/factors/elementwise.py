"""Low rank under a weight for each entry: solvers of a problem without closed form.

Each improves a start (a, b) of

    min sum_ij F_ij (W_ij - (a b)_ij)^2

and gives the loss after each iteration. They run in the dtype of their arguments, on
whatever device these are. The problem has local minima: the start matters.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

BLOCK = 16  # rows whose normal matrices are held at once
TOLERANCE = 0.01  # how near two estimates of a step must be to switch to it
PATIENCE = 10  # iterations before they are compared

Found = tuple[jax.Array, jax.Array, jax.Array]


def loss(kernel: jax.Array, weights: jax.Array, a: jax.Array, b: jax.Array):
    """The weighted square error of a product, a scalar.

    Example:
      >>> one = jnp.ones((1, 1))
      >>> float(loss(3 * one, 2 * one, one, one))
      8.0
    """
    return (weights * jnp.square(kernel - a @ b)).sum()


@functools.partial(jax.jit, static_argnames="iterations")
def als(
    kernel: jax.Array,
    weights: jax.Array,
    a: jax.Array,
    b: jax.Array,
    *,
    iterations: int = 20,
    ridge: float = 1e-6,
) -> Found:
    """Alternating least squares: each row of a solves its own system, then b's columns.

        a_i <- a_i + (b diag(F_i) b' + c_i I)^-1 b diag(F_i) (W_i - a_i b)'

    Damped towards where the row was, not towards zero, it never raises the loss; a row
    without weight stays as it is, and one with fewer weights than R moves only where
    they say.

    Args:
      kernel: (I, J).
      weights: (I, J), not negative.
      a: (I, R).
      b: (R, J).
      iterations: each solves for a and for b.
      ridge: c_i in parts of the mean eigenvalue, beside what the dtype needs.

    Returns:
      a, b, and the losses (iterations + 1,), the start's first.

    Example:
      >>> w, f = jnp.array([[2.0, 4.0], [1.0, 9.0]]), jnp.array([[1.0, 1.0], [1.0, 0]])
      >>> a, b, losses = als(w, f, jnp.ones((2, 1)), jnp.ones((1, 2)))
      >>> (a @ b).round(3).tolist()[0], bool(losses[-1] < 1e-6)
      ([2.0, 4.0], True)
    """

    def step(both, _):
        a, b = both
        a = _rows(kernel, weights, a, b, ridge)
        b = _rows(kernel.T, weights.T, b.T, a.T, ridge).T
        return (a, b), loss(kernel, weights, a, b)

    first = loss(kernel, weights, a, b)
    (a, b), after = jax.lax.scan(step, (a, b), length=iterations)
    return a, b, jnp.concatenate([first[None], after])


def _rows(kernel, weights, a, b, ridge):
    """The best a for this b."""
    rank = b.shape[0]
    own = ridge + 10 * rank * jnp.finfo(b.dtype).eps
    mean = jnp.square(b).sum() / rank
    eye = jnp.eye(rank, dtype=b.dtype)

    def one(row):
        w, f, old = row
        gram = (f[None] * b) @ b.T
        damping = own * (jnp.trace(gram) / rank + own * mean)
        # Cholesky: half the work of a general solve, and the matrix is symmetric.
        root = jnp.linalg.cholesky(gram + damping * eye)
        change = jax.scipy.linalg.cho_solve((root, True), b @ (f * (w - old @ b)))
        return old + jnp.where(jnp.isfinite(change).all(), change, 0)

    return jax.lax.map(one, (kernel, weights, a), batch_size=BLOCK)


@functools.partial(jax.jit, static_argnames="iterations")
def em(
    kernel: jax.Array,
    weights: jax.Array,
    a: jax.Array,
    b: jax.Array,
    *,
    iterations: int = 200,
) -> Found:
    """Fills in what has no weight from the last product, and decomposes the whole.

        X <- svd_R(F W + (1 - F) X),  F scaled to a largest weight of 1

    It never raises the loss, and is slow where weights differ much.

    Args:
      kernel: (I, J).
      weights: (I, J), not negative.
      a: (I, R).
      b: (R, J).
      iterations: one decomposition each.

    Returns:
      As `als`.

    Example:
      >>> one = jnp.ones((2, 1))
      >>> a, b, losses = em(jnp.eye(2), jnp.eye(2), one, one.T, iterations=3)
      >>> losses.round(3).tolist()
      [0.0, 0.0, 0.0, 0.0]

    Reference:
      Srebro and Jaakkola, Weighted low-rank approximations, 2003.
    """
    rank, share = b.shape[0], weights / weights.max()

    def step(both, _):
        a, b = both
        u, s, v = jnp.linalg.svd(
            share * kernel + (1 - share) * (a @ b), full_matrices=False
        )
        a, b = u[:, :rank] * s[None, :rank], v[:rank]
        return (a, b), loss(kernel, weights, a, b)

    first = loss(kernel, weights, a, b)
    (a, b), after = jax.lax.scan(step, (a, b), length=iterations)
    return a, b, jnp.concatenate([first[None], after])


@functools.partial(jax.jit, static_argnames=("iterations", "switch"))
def adam_sgd(
    kernel: jax.Array,
    weights: jax.Array,
    a: jax.Array,
    b: jax.Array,
    *,
    iterations: int = 1000,
    switch: str | int = "swats",
    learning_rate: float = 0.02,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Adam for a fast start, then gradient descent with momentum at Adam's own length.

    Adam's step p and the gradient g give the rate r = -p'p / p'g at which descent would
    go as far along p. "swats" switches when r and its running mean agree.

    Args:
      kernel: (I, J).
      weights: (I, J), not negative, of a mean near 1.
      a: (I, R).
      b: (R, J), of a norm like a's.
      iterations: gradient steps.
      switch: "swats", or the step to switch at.
      learning_rate: Adam's, in parts of the root mean square of a and b.

    Returns:
      The best a and b that it met, the losses (iterations + 1,), and the step at which
      it switched, -1 if never.

    Example:
      >>> w = jnp.outer(jnp.arange(1.0, 4), jnp.ones(2))
      >>> a, b, losses, _ = adam_sgd(w, jnp.ones((3, 2)), jnp.ones((3, 1)),
      ...     jnp.ones((1, 2)), iterations=300)
      >>> bool(losses.min() < 1e-2 * losses[0])
      True

    Reference:
      Hua et al., Numerical optimizations for weighted low-rank estimation on language
      model, 2022 (arXiv:2211.09718), proposes Adam, then SGD. Keskar and Socher,
      Improving generalization performance by switching from Adam to SGD, 2017
      (arXiv:1712.07628): the rule.
    Differs:
      The first paper's own switching point could not be read: the rule is the second's,
      with a tolerance relative to the rate, of our choice. The best iterate is kept.
    """
    size = jnp.sqrt((jnp.square(a).mean() + jnp.square(b).mean()) / 2)
    adam = optax.adam(learning_rate * size)
    entries = jnp.asarray(kernel.size, kernel.dtype)
    inner = jax.value_and_grad(lambda p: loss(kernel, weights, *p) / entries)

    def dot(p, q):
        return jnp.vdot(p[0], q[0]) + jnp.vdot(p[1], q[1])

    def step(carry: Any, number):
        p, opt, mean, count, rate, at, velocity, best = carry
        value, g = inner(p)
        best = jax.tree.map(
            lambda new, old: jnp.where(value < best[0], new, old), (value, *p), best
        )
        move: Any
        with jax.numpy_dtype_promotion("standard"):  # for Optax
            move, opt = adam.update(g, opt)
        down = -dot(move, g)
        falls = down > 0
        own = jnp.where(falls, dot(move, move) / jnp.maximum(down, 1e-30), 0)
        mean = jnp.where(falls, 0.99 * mean + 0.01 * own, mean)
        count = jnp.where(falls, count + 1, count)
        steady = mean / (1 - 0.99 ** jnp.maximum(count, 1).astype(mean.dtype))
        if switch == "swats":
            near = (jnp.abs(steady - own) < TOLERANCE * steady) & (count > PATIENCE)
        else:
            near = number >= switch
        now = (at < 0) & near
        at, rate = jnp.where(now, number, at), jnp.where(now, steady, rate)
        velocity = jax.tree.map(
            lambda v, x: jnp.where(at >= 0, 0.9 * v + x, 0), velocity, g
        )
        p = jax.tree.map(
            lambda x, v, m: x + jnp.where(at >= 0, -0.1 * rate * v, m),
            p,
            velocity,
            move,
        )
        return (p, opt, mean, count, rate, at, velocity, best), value

    p, zero = (a, b), jnp.zeros((), a.dtype)
    best = (jnp.asarray(jnp.inf, a.dtype), a, b)
    nought, never = jnp.int32(0), jnp.int32(-1)
    still = tuple(map(jnp.zeros_like, p))
    carry = (p, adam.init(p), zero, nought, zero, never, still, best)
    carry, values = jax.lax.scan(step, carry, jnp.arange(iterations, dtype=jnp.int32))
    last = inner(carry[0])[0]
    better = last < carry[-1][0]
    a, b = (
        jnp.where(better, x, y) for x, y in zip(carry[0], carry[-1][1:], strict=True)
    )
    return a, b, entries * jnp.append(values, last), carry[5]
