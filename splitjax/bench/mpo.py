"""The two ways of a product with an MPO, and where one overtakes the other."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.factors.mpo import Mpo
from splitjax.factors.mpo_fit import fit
from splitjax.factors.mpo_plan import mpo_plan
from splitjax.train.timing import Timed

DIMS = (384, 1536)
BONDS = (0, 64, 16, 8, 4)  # 0: full bonds
TOKENS = (1, 4, 16, 64, 256)
BOUND = 1.5  # of what "auto" chooses, in times of the quicker way


def made(dims: tuple[int, int], max_bond: int) -> Mpo:
    """An MPO of a kernel of normal numbers.

    Example:
      >>> made((24, 16), 2).central.shape[0]
      2
    """
    kernel = np.random.default_rng(0).normal(size=dims).astype(np.float32)
    return fit(jnp.asarray(kernel), mpo_plan(*dims, max_bond=max_bond or None))


def measure(
    factor: Mpo, tokens: Sequence[int], timed: Timed, *, name: str
) -> list[dict[str, Any]]:
    """Rows of both ways, of what "auto" chooses, and of where they cross.

    Args:
      factor: what `dot` is timed of.
      tokens: rows of the input, rising.
      timed: seconds by name, as `bench.interleaved` gives them.
      name: of the factor, in the rows.

    Returns:
      For each number of tokens, "sequential" and "rebuild" against the product with
      the dense kernel, and the one that "auto" chooses against the quicker of the
      two; last, the least number measured from which on rebuilding is quicker, or
      infinity, against the counted one.
    """
    rows, quicker_from = [], np.inf
    dense = factor.materialize()
    dot = jax.jit(lambda factor, x: factor.dot(x))
    product = jax.jit(lambda kernel, x: x @ kernel)
    for count in tokens:
        x = jnp.ones((count, factor.dims[0]))
        ways = {
            mode: dataclasses.replace(factor, mode=mode)
            for mode in ("sequential", "rebuild")
        }
        steps: dict[str, Callable[[], Any]] = {
            mode: lambda way=way, x=x: dot(way, x) for mode, way in ways.items()
        }
        steps["dense"] = lambda x=x: product(dense, x)
        times = {way: statistics.median(t) for way, t in timed(steps).items()}
        best = min(ways, key=lambda way: times[way])
        times["auto"] = times[factor.chosen(count)]
        if best == "sequential":
            quicker_from = np.inf
        elif quicker_from == np.inf:
            quicker_from = count
        for way, against in (
            ("sequential", "dense"),
            ("rebuild", "dense"),
            ("auto", best),
        ):
            rows.append(
                {
                    "name": f"{name}, {count} tokens: {way}",
                    "value": times[way],
                    "unit": "s",
                    "reference": against,
                    "ratio": times[way] / times[against],
                    "bound": BOUND if way == "auto" else None,
                }
            )
    counted = factor.cost.break_even
    return [
        *rows,
        {
            "name": f"{name}: rebuilding is quicker from",
            "value": float(quicker_from),
            "unit": "tokens",
            "reference": f"counted {counted:.1f}",
            "ratio": 1.0 if quicker_from == counted else float(quicker_from / counted),
            "bound": None,
        },
    ]
