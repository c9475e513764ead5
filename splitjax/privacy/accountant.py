"""The accountant: what noise promises after many releases of one example."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import log_ndtr

from splitjax.core.mechanism import GAUSS, LAPLACE, RANDOMIZED_RESPONSE, Mechanism

# Renyi orders from 1.0001 to 10001, of which the best one is taken.
ORDERS = 1 + np.logspace(-4, 4, 801)


@dataclasses.dataclass(frozen=True)
class Spent:
    """Equal releases of one example.

    Attributes:
      mechanism: whose noise they have.
      count: how many.
    """

    mechanism: Mechanism
    count: int


def renyi(mechanism: Mechanism, orders: np.ndarray) -> np.ndarray:
    """The Renyi differential privacy of one release, at some orders above 1.

    Randomized response, with p = 1 / (1 + e^epsilon) and q = 1 - p:
    `log(q^a p^(1-a) + p^a q^(1-a)) / (a - 1)`. Laplace: `log(a/(2a-1) e^((a-1) e) +
    (a-1)/(2a-1) e^(-a e)) / (a - 1)` with e = epsilon. Gauss: `a / (2 level^2)`.

    Args:
      mechanism: whose.
      orders: a, each above 1.

    Returns:
      float64, in nats, for each order.

    Raises:
      ValueError: for a mechanism of no known kind.

    Example:
      >>> renyi(Mechanism("gauss", 2.0, "row"), np.array([2.0])).tolist()
      [0.25]

    Reference:
      I. Mironov, "Renyi Differential Privacy", 2017, arXiv:1702.07476, propositions 5
      to 7.
    """
    a, level = np.asarray(orders, np.float64), float(mechanism.level)
    if mechanism.kind == GAUSS:
        return a / (2 * level**2)
    if mechanism.kind == RANDOMIZED_RESPONSE:
        log_p, log_q = -np.logaddexp(0, level), -np.logaddexp(0, -level)
        terms = a * log_q + (1 - a) * log_p, a * log_p + (1 - a) * log_q
    elif mechanism.kind == LAPLACE:
        terms = (
            np.log(a / (2 * a - 1)) + (a - 1) * level,
            np.log((a - 1) / (2 * a - 1)) - a * level,
        )
    else:
        raise ValueError(f"no accountant knows the mechanism {mechanism.kind!r}")
    return np.maximum(np.logaddexp(*terms), 0) / (a - 1)


def epsilon_renyi(spent: Sequence[Spent], delta: float) -> float:
    """The epsilon of all releases together, by adding up their Renyi divergences.

    `min_a sum_i count_i r_i(a) + log((a-1)/a) - (log delta + log a) / (a - 1)`.

    Args:
      spent: the releases.
      delta: the chance that the promise does not hold, between 0 and 1.

    Raises:
      ValueError: for another delta.

    Example:
      >>> round(epsilon_renyi([Spent(Mechanism("gauss", 4.0, "row"), 1)], 1e-5), 2)
      1.01

    Reference:
      Mironov 2017 (see `renyi`), proposition 1; the conversion: C. Canonne, G. Kamath,
      T. Steinke, "The Discrete Gaussian for Differential Privacy", 2020,
      arXiv:2004.00010, proposition 12.
    """
    _check(delta)
    spent = [one for one in spent if one.count]
    if not spent:
        return 0.0
    total = sum(one.count * renyi(one.mechanism, ORDERS) for one in spent)
    a = ORDERS
    at = total + np.log1p(-1 / a) - (math.log(delta) + np.log(a)) / (a - 1)
    return float(max(0.0, at.min()))


def epsilon_basic(spent: Sequence[Spent], delta: float) -> float:
    """The epsilon of all releases together, by adding up their epsilons.

    A normal release has no epsilon without a delta: each gets an equal share of it, and
    the exact epsilon of that (by bisection).

    Args:
      spent: the releases.
      delta: see `epsilon_renyi`; only normal noise needs it.

    Raises:
      ValueError: for another delta.

    Example:
      >>> bits = Spent(Mechanism("randomized_response", 2.0, "value"), 64)
      >>> epsilon_basic([bits], 0.1)
      128.0

    Reference:
      C. Dwork and A. Roth, "The Algorithmic Foundations of Differential Privacy", 2014,
      theorem 3.16; the normal case: B. Balle and Y.-X. Wang, "Improving the Gaussian
      Mechanism for Differential Privacy", 2018, arXiv:1805.06530, theorem 8.
    """
    _check(delta)
    spent = [one for one in spent if one.count]
    normal = sum(one.count for one in spent if one.mechanism.kind == GAUSS)
    total = 0.0
    for one in spent:
        level = float(one.mechanism.level)
        if one.mechanism.kind == GAUSS:
            level = _gauss_epsilon(level, delta / normal)
        total += one.count * level
    return total


def _gauss_epsilon(multiplier: float, delta: float) -> float:
    """The exact epsilon of one normal release."""

    def log_delta(epsilon):
        half, far = 1 / (2 * multiplier), epsilon * multiplier
        one, two = log_ndtr(half - far), epsilon + log_ndtr(-half - far)
        return one + np.log1p(-math.exp(min(two - one, 0.0))) if two < one else -np.inf

    low, high = 0.0, 1.0
    if log_delta(low) <= math.log(delta):
        return 0.0
    while log_delta(high) > math.log(delta):
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if log_delta(middle) > math.log(delta):
            low = middle
        else:
            high = middle
    return high


def _check(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: a chance between 0 and 1")
