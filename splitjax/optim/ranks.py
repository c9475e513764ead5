"""Which leaves get a low rank, and which rank."""

from collections.abc import Callable, Mapping

import jax

from splitjax.core.matrix import Plan, Rule, Select, matrix_shape
from splitjax.core.tree import Tree, flat, is_float, where


def rank_from_ratio(
    shape: tuple[int, ...], ratio: float, *, layout: str = "dense", floor: int = 0
) -> int:
    """The rank that a ratio leaves of a full one: `int(R - R ratio)`.

    Args:
      shape: of the leaf; R is the smaller side of its matrix.
      ratio: the share of R to do without, from 0, below 1.
      layout: see `core.matrix.Rule`.
      floor: the least rank; at most R counts.

    Raises:
      ValueError: for a ratio out of range, or one that leaves no rank.

    Example:
      >>> rank_from_ratio((3, 3, 16, 16), 0.57, layout="conv")
      6

    Reference:
      Guo et al., "Low-rank Projection and Energy Transfer", 2022, arXiv:2204.05566, as
      the authors' public code has it.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio {ratio}: it must be 0 or more, and below 1")
    full = min(matrix_shape(shape, layout)[-2:])
    rank = max(int(full - full * ratio), min(floor, full))
    if rank < 1:
        raise ValueError(
            f"a ratio of {ratio} leaves no rank of a leaf {tuple(shape)}, whose full "
            f"rank is {full}: give floor=1, or leave this leaf out"
        )
    return rank


def at_ratio(
    pattern: str,
    ratio: float | Mapping[str, float],
    *,
    layout: str = "dense",
    floor: int = 0,
    norm: Callable[[str], str] | None = None,
    eps: float = 1e-5,
) -> Select:
    """Chooses leaves by their path, and their ranks by a ratio.

    Args:
      pattern: a regular expression; see `core.tree.where`.
      ratio: see `rank_from_ratio`; or one for each path, as `rank_search` gives them.
      layout: see `core.matrix.Rule`.
      floor: see `rank_from_ratio`.
      norm: from a leaf's path to that of the batch norm behind it, or to "".
      eps: of the norms.

    Returns:
      A function from parameters (arrays or specs) to a plan. It raises a ValueError for
      a pattern that matches nothing, for a leaf that is no matrix, for a convolution
      with one input channel, which is a depthwise one or too thin to have a rank, and
      for a norm that is not there.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"wi": {"kernel": jnp.ones((8, 6)), "bias": jnp.ones(6)}}
      >>> at_ratio(".*/kernel", 0.5)(params)["wi/kernel"].rank
      3
    """

    def rank(path, shape):
        share = ratio.get(path) if isinstance(ratio, Mapping) else ratio
        if share is None:
            raise ValueError(f"there is no ratio for {path!r}; leave it out, or give 0")
        return rank_from_ratio(shape, share, layout=layout, floor=floor)

    return _select(pattern, rank, layout, norm, eps)


def at_rank(
    pattern: str,
    rank: int | Callable[[tuple[int, ...]], int],
    *,
    layout: str = "dense",
    norm: Callable[[str], str] | None = None,
    eps: float = 1e-5,
) -> Select:
    """Chooses leaves by their path, all of one rank, or by their shape; see `at_ratio`.

    Example:
      >>> import jax.numpy as jnp
      >>> at_rank("wi/.*", 2)({"wi": {"kernel": jnp.ones((8, 6))}})["wi/kernel"].rank
      2
    """

    def of(path, shape):
        return rank(shape) if callable(rank) else rank

    return _select(pattern, of, layout, norm, eps)


def joined(*selects: Select) -> Select:
    """Several choices as one; a leaf that two of them choose is an error.

    Example:
      >>> import jax.numpy as jnp
      >>> first = at_rank("a", 1)
      >>> rest = at_rank("b|c", 2)
      >>> params = {name: jnp.ones((4, 4)) for name in "abc"}
      >>> [rule.rank for rule in joined(first, rest)(params).values()]
      [1, 2, 2]
    """

    def select(params: Tree) -> Plan:
        plan: dict[str, Rule] = {}
        for one in selects:
            new = one(params)
            if twice := sorted(set(plan) & set(new)):
                raise ValueError(f"chosen twice: {', '.join(twice)}")
            plan |= new
        return plan

    return select


def _select(pattern, rank, layout, norm, eps) -> Select:
    choose = where(pattern)

    def select(params: Tree) -> Plan:
        leaves, plan = flat(params), dict[str, Rule]()
        chosen = jax.tree.leaves(choose(params))
        for (name, leaf), yes in zip(leaves.items(), chosen, strict=True):
            if yes:
                behind = norm(name) if norm else ""
                _check(name, leaf, layout, behind, leaves)
                try:
                    own = rank(name, leaf.shape)
                    plan[name] = Rule(own, layout, behind, eps)
                except ValueError as error:
                    raise ValueError(f"{name!r}: {error}") from None
        return plan

    return select


def _check(name, leaf, layout, norm, names) -> None:
    try:
        matrix_shape(leaf.shape, layout)
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from None
    if not is_float(leaf):
        raise ValueError(f"{name!r} is {leaf.dtype}: only floats have a rank to lower")
    if layout == "conv" and leaf.shape[-2] == 1:
        raise ValueError(
            f"{name!r} {leaf.shape} has one input channel: a depthwise convolution, or "
            "one of gray pictures, has no rank to give away; leave it out"
        )
    if norm and f"{norm}/scale" not in names:
        near = [n for n in sorted(names) if n.endswith("/scale")]
        raise ValueError(
            f"{name!r} names the norm {norm!r}, and there is no leaf '{norm}/scale'; "
            f"there are: {', '.join(near) or 'no scales'}"
        )
