"""Ratios of ranks by trial: each as good a guess as the trials before allow."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from splitjax.core.keys import fold

GUESSES = 512  # points among which the next trial is chosen
SPREAD = 0.1  # of the guesses about the best trial


class Found(NamedTuple):
    """What a search found.

    Attributes:
      ratios: of the best trial, by name, as `ranks.at_ratio` takes them.
      value: of the best trial.
      tried: all trials in order, each `(ratios, value)`.
    """

    ratios: dict[str, float]
    value: float
    tried: list[tuple[dict[str, float], float]]


def rank_search(
    objective: Callable[[dict[str, float]], float],
    names: Sequence[str],
    *,
    key: jax.Array,
    low: float = 0.0,
    high: float = 0.9,
    calls: int = 20,
    first: int = 5,
) -> Found:
    """Makes an objective small by trying ratios, one for each name.

    After some trials by chance, a Gaussian process is fitted to all that were made, and
    the next is where it expects the largest improvement on the best one.

    Args:
      objective: from ratios to what shall be small. The authors of LRPET take
        `-score_dense - score_low + weight * cost_ratio`, of a short training.
      names: of leaves or groups of leaves.
      key: a typed PRNG key.
      low: the least ratio.
      high: the largest, below 1.
      calls: trials.
      first: how many of them are by chance; the first is the middle.

    Returns:
      The best trial, and all of them. A trial whose value is not finite counts as bad
      as the worst.

    Raises:
      ValueError: without names, for a range or counts that make no sense, or when no
        trial has a finite value.

    Example:
      >>> key = jax.random.key(0)
      >>> found = rank_search(lambda r: (r["a"] - 0.3) ** 2, ["a"], key=key, calls=12)
      >>> abs(found.ratios["a"] - 0.3) < 0.05, len(found.tried)
      (True, 12)

    Reference:
      J. Mockus, V. Tiesis, A. Zilinskas, "The application of Bayesian methods for
      seeking the extremum", 1978 (expected improvement); K. Guo et al., "Low-rank
      Projection and Energy Transfer", 2022, arXiv:2204.05566, for its use.

    Differs:
      scikit-learn's process in the place of scikit-optimize's `gp_minimize`, which the
      authors' public code calls.
    """
    if not names or not 0 <= low < high < 1 or not 1 <= first <= calls:
        raise ValueError(
            f"rank_search({names=}, {low=}, {high=}, {calls=}, {first=}): expected "
            "names, 0 <= low < high < 1, and 1 <= first <= calls"
        )
    seed = int(jax.random.bits(fold(key, "rank_search")))
    chance, width = np.random.default_rng(seed), len(names)
    points, values = np.zeros((0, width)), np.zeros(0)
    for number in range(calls):
        if number < first:
            point = chance.random(width) if number else np.full(width, 0.5)
        else:
            point = _next(points, _finite(values), chance)
        ratios = _named(names, low + (high - low) * point)
        points = np.vstack([points, point])
        values = np.append(values, float(objective(ratios)))
    best = int(np.argmin(_finite(values)))
    each = low + (high - low) * points
    tried = [(_named(names, p), float(v)) for p, v in zip(each, values, strict=True)]
    return Found(*tried[best], tried)


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return dict(zip(names, map(float, values), strict=True))


def _finite(values: np.ndarray) -> np.ndarray:
    known = values[np.isfinite(values)]
    if not len(known):
        raise ValueError(f"the objective is not finite in any trial: {values}")
    return np.where(np.isfinite(values), values, known.max())


def _next(points: np.ndarray, values: np.ndarray, chance) -> np.ndarray:
    """The guess with the largest expected improvement."""
    from scipy.stats import norm
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern, WhiteKernel

    width = points.shape[1]
    kernel = Matern(np.full(width, 0.3), (0.05, 5.0), nu=2.5) + WhiteKernel(1e-4)
    process = GaussianProcessRegressor(
        kernel, normalize_y=True, random_state=int(chance.integers(2**31))
    )
    with warnings.catch_warnings():
        # A length at the end of its range is an answer, too.
        warnings.simplefilter("ignore")
        process.fit(points, values)
    best = points[np.argmin(values)]
    near = best + SPREAD * chance.standard_normal((GUESSES // 2, width))
    guesses = np.vstack([chance.random((GUESSES // 2, width)), np.clip(near, 0, 1)])
    found: Any = process.predict(guesses, return_std=True)
    mean, deviation = found[0], np.maximum(found[1], 1e-12)
    gain = values.min() - mean
    z = gain / deviation
    return guesses[np.argmax(gain * norm.cdf(z) + deviation * norm.pdf(z))]
