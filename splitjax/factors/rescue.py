"""Where plain SVD fails, and a tree of kernels factored with that in mind."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from splitjax.core.factor import factorize, is_factor, materialize
from splitjax.core.tree import Tree, path_name
from splitjax.factors.fwsvd import weights_of
from splitjax.factors.product import saves
from splitjax.factors.weighted import Rank, Report, entries, rank_of, wsvd

GAP = 1.05  # plain SVD that loses less than so many times the best one is kept


def spread(weights: jax.Array) -> float:
    """The deviation of the weights in parts of their mean: 0 where plain SVD is best.

    Where it is large, plain SVD spends its rank on entries that do not matter. On
    kernels of one kind it ranks them nearly as the measured gap does.

    Example:
      >>> import jax.numpy as jnp
      >>> spread(jnp.ones((2, 2))), spread(jnp.array([[0.0, 2.0]]))
      (0.0, 1.0)

    Differs:
      The second paper has a measure of its own, whose formula could not be read.
    """
    found = np.asarray(weights, np.float64)
    return float(weights_of(found, found.shape, axes=min(found.ndim, 2)).std())


def svd_gap(kernel: jax.Array, weights: jax.Array, rank: int, **options: Any) -> float:
    """What plain SVD loses in parts of the best product found: the deciding measure.

    Args:
      kernel: (I, J).
      weights: (I, J).
      rank: of both.
      **options: of `weighted.wsvd`.

    Example:
      >>> import jax.numpy as jnp
      >>> round(svd_gap(jnp.diag(jnp.array([4.0, 3.0, 2.0])), jnp.ones((3, 3)), 1), 4)
      1.0
    """
    return wsvd(kernel, weights, rank, **options)[1].gap


def rescued(rank: Rank, *, least_gap: float = GAP, **options: Any):
    """Plain SVD, and `wsvd` where plain SVD fails, as `factorize` takes it.

    Args:
      rank: a number, or a function of the kernel's shape.
      least_gap: see `factorize_weighted`.
      **options: of `weighted.wsvd`, `least_spread` among them.

    Example:
      >>> import jax.numpy as jnp
      >>> from splitjax.factors.product import svd
      >>> kernel, even = jnp.eye(4, 6), jnp.ones((4, 6))
      >>> bool(jnp.array_equal(rescued(1)(kernel, even).a, svd(kernel, 1).a))
      True
    """

    return entries(rank, least_gap=least_gap, **options)


def factorize_weighted(
    params: Tree,
    weights: Tree,
    where: Callable[[Tree], Tree],
    rank: Rank,
    *,
    least_gap: float = GAP,
    **options: Any,
) -> tuple[Tree, dict[str, Report]]:
    """Products in the place of the chosen kernels: weighted where plain SVD fails.

    A kernel whose weights are nearly even is not solved for, one whose measured gap is
    small keeps its plain SVD, and one of which a product of this rank would hold as
    many numbers stays dense. A leaf that stands at one place of the tree and is read at
    two (a tied one) is factored once; its weights are those of both uses.

    Args:
      params: the parameters.
      weights: of the same structure, as `fisher` gives them.
      where: which kernels, each (I, J).
      rank: a number, or a function of the kernel's shape.
      least_gap: below it plain SVD is kept; 1 never keeps it but where it is the best.
      **options: of `weighted.wsvd`, `least_spread` among them.

    Returns:
      The parameters, and a report for the path of each chosen kernel: `chosen` is what
      stands there, `losses` has what it was chosen from.

    Raises:
      ValueError: as `factorize` and `wsvd` do.

    Example:
      >>> import jax.numpy as jnp
      >>> from splitjax.core.tree import where
      >>> params = {"a": jnp.eye(4, 6), "b": jnp.eye(2)}
      >>> new, told = factorize_weighted(params, jax.tree.map(jnp.ones_like, params),
      ...     where("a|b"), 1)
      >>> told["a"].chosen, told["b"].chosen, new["b"] is params["b"]
      ('svd', 'dense', True)
    """
    found, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_factor)
    nodes = [node.spec if is_factor(node) else node for _, node in found]
    chosen = treedef.flatten_up_to(where(treedef.unflatten(nodes)))
    told: dict[str, Report] = {}
    thin = []
    for (path, _), node, yes in zip(found, nodes, chosen, strict=True):
        worth = yes and saves(node.shape, rank_of(rank, node.shape))
        thin.append(worth)
        if yes:
            told[path_name(path)] = Report(0, "dense", {}, 0.0, 1.0)
    if not any(thin) and any(chosen):
        return params, told
    names = iter([path_name(p) for (p, _), yes in zip(found, thin, strict=True) if yes])

    def fit(kernel, f):
        kernel = materialize(kernel)
        own = rank_of(rank, kernel.shape)
        factor, report = wsvd(kernel, f, own, least_gap=least_gap, **options)
        told[next(names)] = report
        return factor

    return factorize(fit, params, lambda tree: treedef.unflatten(thin), weights), told
