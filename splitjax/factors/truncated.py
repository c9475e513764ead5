"""Leaves of a plan as products: the form in which a low rank saves something."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from splitjax.core.factor import is_factor
from splitjax.core.matrix import (
    Plan,
    Rule,
    Select,
    as_matrix,
    from_matrix,
    matrix_shape,
)
from splitjax.core.owners import owners
from splitjax.core.tree import Tree, nearest, path_name
from splitjax.factors.product import Product, saves, svd


def truncate(params: Tree, select: Select | Plan) -> Tree:
    """Puts the nearest product of its rank in the place of each leaf of a plan.

    Of weights that `optim.lrpet` has projected it is the same function; of others it is
    truncation. A convolution (..., H, W, I, J) becomes one to R channels and one of
    1 x 1 from there: `Product(a (..., H, W, I, R), b (..., 1, 1, R, J))`, which
    `models.convolution` runs as two. A leaf of zeros becomes a product of zeros. One
    whose product would hold no fewer numbers stays dense.

    Args:
      params: the parameters; specs give specs, to count with.
      select: which leaves, and their ranks: see `optim.ranks`.

    Returns:
      The parameters, all other leaves being the very same objects.

    Raises:
      ValueError: for a leaf that is not finite, that there is not, that belongs to a
        factor, or that is a core of an MPO: less of its bond is fit anew.

    Example:
      >>> params = {"k": jnp.ones((3, 3, 8, 6)), "bias": jnp.ones(6)}
      >>> new = truncate(params, {"k": Rule(2, layout="conv")})
      >>> new["k"].a.shape, new["k"].b.shape, new["k"].spec.shape
      ((3, 3, 8, 2), (1, 1, 2, 6), (3, 3, 8, 6))

    Reference:
      K. Guo, Z. Lin, X. Xing, F. Liu, X. Xu, "Low-rank Projection and Energy Transfer",
      2022, arXiv:2204.05566, as the authors' public code has it.
    """
    plan = select if isinstance(select, Mapping) else select(params)
    _check(plan, params)

    def one(path, leaf):
        rule = plan.get(path_name(path))
        if rule is None:
            return leaf
        shape = matrix_shape(leaf.shape, rule.layout)
        rank = min(rule.rank, *shape[-2:])
        if not saves(shape, rank):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.eval_shape(lambda a: _zeros(a, rule, rank), leaf)
        if not jnp.any(leaf):
            return _zeros(leaf, rule, rank)
        try:
            made = svd(as_matrix(leaf, rule.layout), rank)
        except ValueError as error:
            raise ValueError(f"{path_name(path)!r}: {error}") from None
        return _shaped(made, leaf.shape, rule, rank)

    return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_factor)


def _check(plan: Plan, params: Tree) -> None:
    rows = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_factor)
    nodes = {path_name(path): node for path, node in rows}
    inside = owners(params)
    for name, rule in plan.items():
        factor = inside.get(name, nodes.get(name))
        if is_factor(factor):
            raise ValueError(
                f"{name!r} is of a {type(factor).__name__} already: truncate "
                "materialize(params), or leave it out"
            )
        if name not in nodes:
            raise ValueError(f"there is no leaf {name!r}: {nearest(name, [*nodes])}")
        if rule.layout == "core":
            raise ValueError(
                f"{name!r} has the layout 'core', of an MPO: a product is no core; "
                "take a plan of smaller bonds, mpo_plan(max_bond=)"
            )


def _shaped(made: Product, shape: tuple[int, ...], rule: Rule, rank: int) -> Product:
    """The product of a matrix as that of its leaf."""
    if rule.layout != "conv":
        return made
    a = from_matrix(made.a, (*shape[:-1], rank), "conv")
    return Product(a, made.b[..., None, None, :, :])


def _zeros(leaf: jax.Array, rule: Rule, rank: int) -> Product:
    *lead, rows, columns = matrix_shape(leaf.shape, rule.layout)
    a, b = (jnp.zeros((*lead, *s), leaf.dtype) for s in ((rows, rank), (rank, columns)))
    return _shaped(Product(a, b), leaf.shape, rule, rank)
