"""Low rank that spends its error where it matters least: the best of what is known."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.factor import materialize
from splitjax.core.keys import fold
from splitjax.factors import elementwise
from splitjax.factors.fwsvd import FLOOR, fwsvd, rank_one, weights_of
from splitjax.factors.product import Product, balanced, matrix, svd

SOLVERS = {
    "als": elementwise.als,
    "em": elementwise.em,
    "adam_sgd": elementwise.adam_sgd,
}
STARTS = ("svd", "fwsvd", "rank_one")
Rank = int | Callable[[tuple[int, ...]], int]  # or a function of a kernel's shape


def weighted_loss(kernel: Any, weights: Any, factor: Any) -> float:
    """sum_ij F_ij (W_ij - factor_ij)^2, weights as they are, in float64 on the host.

    Example:
      >>> weighted_loss(3 * jnp.ones((1, 1)), jnp.full((1, 1), 2.0), jnp.ones((1, 1)))
      8.0
    """
    dense, stands = (_float64(a) for a in (materialize(kernel), factor))
    weights = np.asarray(weights, np.float64)
    return float((weights * np.square(dense - stands)).sum())


def _float64(node) -> np.ndarray:
    if isinstance(node, Product):
        return _float64(node.a) @ _float64(node.b)
    return np.asarray(materialize(node)).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of one kernel.

    Attributes:
      rank: of the product; 0 where the kernel stays dense.
      chosen: the name of the best candidate, or "dense".
      losses: the weighted loss of each candidate, the mean weight being 1.
      spread: see `rescue.spread`.
      gap: the loss of plain SVD in parts of the best one's: 1 where it is the best.
      trace: of the solver that ran last: its losses by iteration.
    """

    rank: int
    chosen: str
    losses: dict[str, float]
    spread: float
    gap: float
    trace: tuple[float, ...] = ()


def wsvd(
    kernel: jax.Array,
    weights: jax.Array,
    rank: int,
    *,
    method: str = "als",
    start: str = "rank_one",
    restarts: int = 1,
    key: jax.Array | None = None,
    least_gap: float = 1.0,
    least_spread: float = 0.0,
    **options: Any,
) -> tuple[Product, Report]:
    """The best product found under a weight for each entry, never worse than SVD.

    Of the closed forms and of what the solver made of its starts, the one with the
    least loss, measured in float64 on the factors as they are returned: so it is never
    worse than `product.svd`, `fwsvd`, `rank_one` or its start.

    Args:
      kernel: (I, J), floating. For leading axes map over them; `entries` does.
      weights: (I, J), not negative; only their ratios count.
      rank: from 1 to min(I, J).
      method: "als", "em" or "adam_sgd": see `elementwise`.
      start: "svd", "fwsvd" or "rank_one".
      restarts: starts in all; those after the first are random.
      key: for them.
      least_gap: plain SVD is kept where its loss is below so many times the best one.
      least_spread: weights of less get plain SVD, and nothing else is tried.
      **options: of the solver: iterations, ridge, switch, learning_rate.

    Returns:
      Factors of the kernel's dtype, balanced, and what was found.

    Raises:
      ValueError: see `fwsvd`; for a method or start that there is not, restarts
        without a key, or iterations below 0.

    Example:
      >>> w = jax.random.normal(jax.random.key(0), (4, 3))
      >>> f = jnp.square(jax.random.normal(jax.random.key(1), (4, 3)))
      >>> factor, report = wsvd(w, f, 1)
      >>> report.chosen, report.losses["als"] <= report.losses["svd"]
      ('als', True)

    Reference:
      Hua et al., Numerical optimizations for weighted low-rank estimation on language
      model, 2022 (arXiv:2211.09718): the problem, and Adam, then SGD. Srebro and
      Jaakkola, Weighted low-rank approximations, 2003: EM.
    Differs:
      Alternating least squares, the rank-one start and the best of all are ours.
    """
    for value, name, known in ((method, "method", SOLVERS), (start, "start", STARTS)):
        if value not in known:
            raise ValueError(f"{name}={value!r}: it must be one of {tuple(known)}")
    if restarts < 1 or (restarts > 1 and key is None):
        raise ValueError(f"restarts={restarts}: 1, or more with a key for the others")
    if (count := options.get("iterations", 0)) < 0:
        raise ValueError(f"iterations={count}: of the solver, 0 or more")
    dense = matrix(kernel, rank)
    if dense.ndim != 2:
        raise ValueError(f"wsvd takes one kernel (I, J); this one is {dense.shape}")
    whole = weights_of(weights, dense.shape)
    uneven, plain = float(whole.std()), svd(kernel, rank)
    if uneven < least_spread:
        return plain, Report(rank, "svd", {}, uneven, 1.0)
    made = {
        "svd": plain,
        "fwsvd": fwsvd(kernel, whole.mean(-1), rank),
        "rank_one": rank_one(kernel, whole, rank),
    }
    # Of a mean square of 1, so that no step or ridge knows the kernel's unit.
    size = float(np.sqrt(np.square(dense).mean()))
    w, f = jnp.asarray(dense / size), jnp.asarray(whole)
    first = made[start]
    starts = itertools.chain(
        [tuple(_float64(p) / np.sqrt(size) for p in (first.a, first.b))],
        (_drawn(fold(key, number), dense.shape, rank) for number in range(1, restarts)),
    )
    trace: tuple[float, ...] = ()
    dtype = materialize(kernel).dtype
    for number, (a, b) in enumerate(starts):
        a, b, losses, *_ = SOLVERS[method](
            w, f, jnp.asarray(a), jnp.asarray(b), **options
        )
        trace = tuple((np.asarray(losses, np.float64) * size**2).tolist())
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if np.isfinite(a).all() and np.isfinite(b).all():
            name = f"{method} {number}" if number else method
            made[name] = balanced(a * size, b, dtype)
    losses = {name: weighted_loss(dense, whole, one) for name, one in made.items()}
    chosen = min(losses, key=losses.__getitem__)
    gap = _gap(losses["svd"], losses[chosen], (whole * np.square(dense)).sum())
    if gap < least_gap:
        chosen = "svd"
    return made[chosen], Report(rank, chosen, losses, uneven, gap, trace)


def _drawn(key, shape, rank):
    scale = rank**-0.25
    return tuple(
        np.asarray(jax.random.normal(fold(key, name), size), np.float64) * scale
        for name, size in (("a", (shape[0], rank)), ("b", (rank, shape[1])))
    )


def _gap(plain: float, best: float, energy: float) -> float:
    """1 where nothing is lost but rounding."""
    return 1.0 if plain <= 1e-10 * energy else plain / max(best, 1e-300)


def rank_of(rank: Rank, shape: tuple[int, ...]) -> int:
    """The rank of a kernel of this shape.

    Example:
      >>> rank_of(3, (4, 6)), rank_of(min, (4, 6))
      (3, 4)
    """
    return rank(shape) if callable(rank) else rank


def rows(rank: Rank, *, floor: float = FLOOR):
    """`fwsvd` as `factorize` takes it, beside a tree of weights or of their row sums.

    Args:
      rank: a number, or a function of the kernel's shape, as `product.rank_keeping`.
      floor: see `fwsvd`.

    Example:
      >>> from splitjax.core.factor import factorize
      >>> from splitjax.core.tree import where
      >>> params = {"wi": {"kernel": jnp.eye(4, 6), "bias": jnp.zeros(6)}}
      >>> sums = {"wi": {"kernel": jnp.ones(4), "bias": None}}
      >>> factorize(rows(1), params, where(".*/kernel"), sums)["wi"]["kernel"].b.shape
      (1, 6)
    """

    def fit(kernel, weights):
        shape = materialize(kernel).shape
        whole = np.ndim(weights) == len(shape)
        sums = weights_of(weights, shape).sum(-1) if whole else weights
        return fwsvd(kernel, sums, rank_of(rank, shape), floor=floor)

    return fit


def entries(rank: Rank, **options: Any):
    """`wsvd` as `factorize` takes it, beside a tree of weights; see `rows`.

    Leading axes are a batch: each kernel is solved by itself.

    Example:
      >>> fit = entries(1, method="em", iterations=2)
      >>> fit(jnp.ones((2, 4, 3)), jnp.ones((2, 4, 3))).a.shape
      (2, 4, 1)
    """

    def fit(kernel, weights):
        kernel = materialize(kernel)
        of = rank_of(rank, kernel.shape)
        if kernel.ndim == 2:
            return wsvd(kernel, weights, of, **options)[0]
        if getattr(weights, "shape", None) != kernel.shape:
            weights_of(weights, kernel.shape)
        each = [fit(k, f) for k, f in zip(kernel, weights, strict=True)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    return fit
