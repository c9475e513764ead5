"""Ways to compress a matrix to a share of its numbers, by the name that chooses one."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

from splitjax.core.factor import factorize, materialize
from splitjax.core.tree import Tree, where
from splitjax.factors import mpo_fit, quantized
from splitjax.factors.mpo_plan import plan_keeping
from splitjax.factors.product import rank_keeping, svd
from splitjax.factors.rescue import rescued
from splitjax.factors.smartdeal import smartdeal
from splitjax.factors.smartdeal_fit import keeping
from splitjax.factors.weighted import entries, rows

Fit = Callable[[Any, Any], Any]


class Options(Protocol):
    """What a method reads of an experiment: see `compression.Compression`."""

    where: str
    solver: str
    iterations: int


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to compress a matrix.

    Attributes:
      fit: `(options, share) -> fit`, which `core.factor.factorize` calls with a matrix
        and its Fisher (None where it is not `weighted`).
      weighted: whether it reads the Fisher.
      form: what it makes: "product" of a rank, "cores" of an MPO, or "codes".
    """

    fit: Callable[[Any, float], Fit]
    weighted: bool = False
    form: str = "product"


def rank_of(share: float) -> Callable[[tuple[int, ...]], int]:
    """From a kernel's shape to the rank that holds a share of its numbers.

    Example:
      >>> rank_of(0.5)((384, 384))
      96
    """
    return functools.partial(rank_keeping, share)


def _svd(_: Options, share: float) -> Fit:
    rank = rank_of(share)
    return lambda kernel, _: svd(kernel, rank(materialize(kernel).shape))


def _fwsvd(_: Options, share: float) -> Fit:
    return rows(rank_of(share))


def _wsvd(options: Options, share: float) -> Fit:
    how = {"method": options.solver, "iterations": options.iterations}
    return entries(rank_of(share), **how)


def _rescue(options: Options, share: float) -> Fit:
    how = {"method": options.solver, "iterations": options.iterations}
    return rescued(rank_of(share), **how)


def _mpo(_: Options, share: float) -> Fit:
    def fit(kernel, _):
        dense = materialize(kernel)
        return mpo_fit.fit(dense, plan_keeping(share, *dense.shape[-2:]))

    return fit


def _smartdeal(_: Options, share: float) -> Fit:
    encode = smartdeal(keeping(share))
    return lambda kernel, _: encode(kernel)


def _quantized(_: Options, share: float) -> Fit:
    encode = quantized.keeping(share)
    return lambda kernel, _: encode(kernel)


# A factor joins the table by a line here; each must run through tests/laws/test_factor.
METHODS = {
    "svd": Method(_svd),
    "fwsvd": Method(_fwsvd, weighted=True),
    "wsvd": Method(_wsvd, weighted=True),
    "rescue": Method(_rescue, weighted=True),
    "mpo": Method(_mpo, form="cores"),
    "smartdeal": Method(_smartdeal, form="codes"),
    "quantized": Method(_quantized, form="codes"),
}


def fitted(
    options: Options,
    params: Tree,
    weights: Tree | None,
    factor: str,
    share: float,
) -> Tree:
    """Parameters with the chosen matrices compressed.

    Args:
      options: which matrices, and how.
      params: by stage name; factors among them are compressed again where they may be.
      weights: the Fisher, or None where the method reads none.
      factor: a name of `METHODS`.
      share: of the numbers of each matrix that is kept: of a product or an MPO the
        numbers of its arrays, of SmartDeal's codes those that are not zero; of what is
        quantized the bytes, whose numbers are as many as before.
    """
    method = METHODS[factor]
    fit, choose = method.fit(options, share), where(options.where)
    if not method.weighted:
        return factorize(lambda kernel: fit(kernel, None), params, choose)
    return factorize(fit, params, choose, weights)


def coded(options: Options, params: Tree, share: float) -> Tree:
    """Parameters with SmartDeal on top: the chosen matrices, or their factors' arrays.

    Args:
      options: which matrices.
      params: by stage name.
      share: of each array's codes that are not zero.
    """
    return factorize(smartdeal(keeping(share)), params, where(options.where))
