"""Training at a low rank: now and then weights are projected, and keep their energy."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from splitjax.core.matrix import (
    Plan,
    Rule,
    Select,
    as_matrix,
    from_matrix,
    matrix_shape,
)
from splitjax.core.owners import owners, refuse_closed
from splitjax.core.precision import wide
from splitjax.core.tree import Tree, flat, nearest, path_name
from splitjax.optim.energy import energy_project
from splitjax.optim.norms import norm_scales

Scales = Mapping[str, jax.Array]


class LrpetState(NamedTuple):
    """State of `lrpet`.

    Attributes:
      count: int32, updates so far; read where no step is given.
      alpha: of the last projection, by path: see `energy.Projected`; 0 before it.
    """

    count: jax.Array
    alpha: dict[str, jax.Array]


def lrpet(
    select: Select | Plan,
    *,
    every: int = 250,
    start: int = 0,
    stop: int | None = None,
    last: int | None = None,
    transfer: bool = True,
    rho: float = 0.0,
    damping: float = 1e-5,
    scale_in: Scales | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Projects chosen weights to a low rank after every so many steps.

    It is the last of a chain: an update u of a parameter p becomes `project(p + u) - p`
    at the steps every, 2 every, ..., and stays as it is, to the bit, at all others,
    which decompose nothing, under `vmap` neither. Momentum is not touched. See
    `energy.energy_project` for the projection; equal shapes are done as one batch.

    Args:
      select: which leaves, and their ranks: see `optim.ranks`. One that names norms
        needs their statistics, `model_state=`.
      every: steps from one projection to the next.
      start: no projection before so many steps are done.
      stop: none after so many; None for no end.
      last: the number of steps of the run: its end is projected, too. None: it may not
        be.
      transfer: see `energy_project`, which gets it, `rho` and `damping` (as `eps`).
      rho: likewise.
      damping: likewise.
      scale_in: by path, (..., I) for a leaf's matrix (..., I, J): what its rows count
        for, as the root of a Fisher's row sums. Not all leaves need one.

    Returns:
      A transformation that reads `step=` (optimizer steps done before this one; without
      it, it counts its updates) and `model_state=`, and needs params. Its state has the
      last alpha of every leaf, to be logged.

    Raises:
      ValueError: for options out of range; on init, for a choice that does not fit; on
        update, without params, or without a norm's statistics.

    Example:
      >>> from splitjax.optim.ranks import at_rank
      >>> tx = optax.chain(optax.sgd(1.0), lrpet(at_rank("w", 1), every=2))
      >>> params = {"w": jnp.diag(jnp.array([4.0, 3.0]))}
      >>> state, still = tx.init(params), {"w": jnp.zeros((2, 2))}
      >>> for step in range(2):
      ...     updates, state = tx.update(still, state, params, step=step)
      ...     params = optax.apply_updates(params, updates)
      >>> params["w"].round(3).tolist()
      [[5.0, 0.0], [0.0, 0.0]]

    Reference:
      K. Guo, Z. Lin, X. Xing, F. Liu, X. Xu, "Low-rank Projection and Energy Transfer",
      2022, arXiv:2204.05566, as the authors' public code has it: every 250 steps on
      ImageNet, once an epoch on CIFAR-10.

    Differs:
      A norm is named, not guessed from the order of modules. The difference is rounded:
      a weight has its rank to about 1e-7 of its size, in bfloat16 to 1e-2 only; there,
      keep float32 weights, or call `project_params` on what is exported. What wraps
      this transformation (`optax.MultiSteps`, an average) is not projected. For the
      rest see `energy_project`.
    """
    if every < 1 or start < 0 or not 0 <= rho <= 1 or damping < 0:
        raise ValueError(
            f"lrpet({every=}, {start=}, {rho=}, {damping=}): expected every from 1 on, "
            "start from 0 on, rho from 0 to 1, and a damping of 0 or more"
        )
    if stop is not None and stop < start:
        raise ValueError(f"lrpet(start={start}, stop={stop}): the end is before it")
    how: dict[str, Any] = {"transfer": transfer, "rho": rho, "eps": damping}
    ins = scale_in or {}

    def init(params):
        plan, leaves = _planned(select, params, ins)
        alpha = {}
        for path, rule in plan.items():
            lead = matrix_shape(leaves[path].shape, rule.layout)[:-2]
            alpha[path] = jnp.zeros(lead, wide(leaves[path].dtype))
        return LrpetState(jnp.int32(0), alpha)

    def update(updates, state, params=None, *, step=None, model_state=None, **extra):
        if params is None:
            raise ValueError("lrpet needs params: tx.update(g, state, params)")
        plan, leaves = _planned(select, params, ins)
        scales = ins, norm_scales(plan, leaves, model_state)
        done = jnp.asarray(state.count if step is None else step, jnp.int32) + 1
        due = (done % every == 0) & (done >= start)
        due = due if stop is None else due & (done <= stop)
        due = due if last is None else due | (done == last)
        found, treedef = jax.tree_util.tree_flatten_with_path(updates)
        names = [path_name(path) for path, _ in found]
        made = {n: u for n, (_, u) in zip(names, found, strict=True) if n in plan}

        def go(made):
            moved = {n: leaves[n] + u for n, u in made.items()}
            low, alpha = _project(moved, plan, scales, how)
            # What a projection left as it was keeps its update, to the bit.
            low = {
                n: jnp.where(due & (w != moved[n]), w - leaves[n], made[n])
                for n, w in low.items()
            }
            kept = state.alpha
            return low, {n: jnp.where(due, a, kept[n]) for n, a in alpha.items()}

        made, alpha = jax.lax.cond(_any(due), go, lambda u: (u, state.alpha), made)
        new = [made.get(n, u) for n, (_, u) in zip(names, found, strict=True)]
        return treedef.unflatten(new), LrpetState(state.count + 1, alpha)

    return optax.GradientTransformationExtraArgs(init, update)


def project_params(
    params: Tree,
    select: Select | Plan,
    *,
    model_state: Tree = None,
    transfer: bool = True,
    rho: float = 0.0,
    damping: float = 1e-5,
    scale_in: Scales | None = None,
) -> Tree:
    """Parameters with the chosen leaves projected; see `lrpet`.

    Example:
      >>> from splitjax.optim.ranks import at_rank
      >>> w = jnp.diag(jnp.array([4.0, 3.0]))
      >>> project_params({"w": w}, at_rank("w", 1))["w"].round(3).tolist()
      [[5.0, 0.0], [0.0, 0.0]]
    """
    ins = scale_in or {}
    plan, leaves = _planned(select, params, ins)
    scales = ins, norm_scales(plan, leaves, model_state)
    how = {"transfer": transfer, "rho": rho, "eps": damping}
    made, _ = _project({name: leaves[name] for name in plan}, plan, scales, how)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: made.get(path_name(path), leaf), params
    )


def alphas(state: Tree) -> dict[str, jax.Array]:
    """The alphas of the last projections in an optimizer's state, by path.

    Args:
      state: any tree; empty where nothing in it is of `lrpet`. One with leading axes
        (a stack of layers) is told by its mean.

    Example:
      >>> from splitjax.optim.ranks import at_rank
      >>> tx = optax.chain(optax.sgd(1.0), lrpet(at_rank("w", 1), every=1))
      >>> params = {"w": jnp.diag(jnp.array([4.0, 3.0]))}
      >>> _, state = tx.update({"w": jnp.zeros((2, 2))}, tx.init(params), params)
      >>> {path: round(float(alpha), 4) for path, alpha in alphas(state).items()}
      {'w': 1.5625}
    """
    nodes = jax.tree.leaves(state, is_leaf=_is_lrpet)
    found: dict[str, jax.Array] = {}
    for node in filter(_is_lrpet, nodes):
        found |= {path: alpha.mean() for path, alpha in node.alpha.items()}
    return found


def _is_lrpet(node: Any) -> bool:
    return isinstance(node, LrpetState)


@jax.custom_batching.custom_vmap
def _any(due: jax.Array) -> jax.Array:
    """A predicate that `vmap` does not batch: a `cond` on it stays one."""
    return due


@_any.def_vmap
def _any_of_batch(axis_size, in_batched, due):
    return jnp.any(due), False


def _planned(select, params, ins: Scales) -> tuple[Plan, dict[str, jax.Array]]:
    plan = select if isinstance(select, Mapping) else select(params)
    leaves = flat(params)
    for name in plan:
        if name not in leaves:
            raise ValueError(
                f"there is no leaf {name!r}: {nearest(name, list(leaves))}"
            )
    for name, scale in ins.items():
        if name not in plan:
            raise ValueError(
                f"scale_in has {name!r}, which has no rank: {nearest(name, [*plan])}"
            )
        rows = matrix_shape(leaves[name].shape, plan[name].layout)[:-1]
        if scale.shape != rows:
            raise ValueError(
                f"scale_in of {name!r} is {scale.shape}; its matrix has the rows {rows}"
            )
    _check_owners(plan, params)
    return plan, leaves


def _check_owners(plan: Plan, params: Tree) -> None:
    """Raises where an array's factor does not allow its projection."""
    chosen = jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path) in plan, params
    )
    refuse_closed(params, chosen)
    for name, factor in owners(params).items():
        if name not in plan:
            continue
        if "core" in (factor.layout, plan[name].layout) and (
            factor.layout != plan[name].layout
        ):
            raise ValueError(
                f"{name!r} is of a {type(factor).__name__}, whose arrays have the "
                f"layout {factor.layout!r}, not {plan[name].layout!r}: a core's rank "
                "is that of its bond"
            )


def _project(
    leaves: dict[str, jax.Array], plan: Plan, scales: tuple[Scales, Scales], how: dict
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Leaves and their alphas; those of one shape and rule are one batch."""
    groups: dict[Any, list[str]] = {}
    for path, leaf in leaves.items():
        rule: Rule = plan[path]
        scaled = tuple(path in side for side in scales)
        kind = (leaf.shape, leaf.dtype, rule.rank, rule.layout, scaled)
        groups.setdefault(kind, []).append(path)
    new, alphas = {}, {}
    for (shape, _, rank, layout, scaled), paths in groups.items():
        matrices = jnp.stack([as_matrix(leaves[path], layout) for path in paths])
        ins, outs = (
            jnp.stack([side[path] for path in paths]) if has else None
            for side, has in zip(scales, scaled, strict=True)
        )
        made = energy_project(matrices, rank, scale_in=ins, scale_out=outs, **how)
        for path, matrix, alpha in zip(paths, made.matrix, made.alpha, strict=True):
            new[path], alphas[path] = from_matrix(matrix, shape, layout), alpha
    return new, alphas
