"""An optimizer that sees one long leaf for each dtype."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from splitjax.core.tree import Tree, flat, path_name, where


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FlatState:
    """State of `flat_by_dtype`.

    Attributes:
      inner: of the wrapped transformation, over {"flat": {dtype: (N,)}, "apart":
        {path: leaf}}.
      apart: the paths of the leaves that stay as they are.
      leaves: each leaf's path and its dtype and shape, as on init.
    """

    inner: Tree
    apart: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    leaves: tuple[tuple[str, str], ...] = dataclasses.field(metadata={"static": True})


def flat_by_dtype(
    inner: optax.GradientTransformation,
    *,
    apart: str | Callable[[Tree], Tree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Joins all leaves of a dtype to one vector, around a transform of single elements.

    A step of Adam on hundreds of leaves is as many small programs; on their vector it
    is one. Updates come back with the leaf's shape and dtype.

    A leaf that is sharded stays apart, as it is: to join it would gather it on every
    device. No collective is added.

    Args:
      inner: it must treat each element by itself (Adam, SGD, AdaGrad, a schedule; no
        norm of a leaf, no factored moments, no mask by name). That is not checked.
      apart: which leaves stay apart: a pattern (see `core.tree.where`), or a function
        from the parameters to a tree of bools. None: those whose sharding is not fully
        replicated, which only a call of `init` outside of `jit` can see.

    Returns:
      A transformation that passes extra arguments on.

    Raises:
      ValueError: on `init` under `jit` or `jax.eval_shape` where there are several
        devices and `apart` is None (so `parallel.zero.make_trainer`, which asks for the
        shapes of a state, needs an `apart`); on update, where updates or parameters are
        not the leaves of init, by path, shape and dtype.

    Example:
      >>> tx = flat_by_dtype(optax.adam(0.1))
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
      >>> state = tx.init(params)
      >>> state.inner[0].mu["flat"]["float32"].shape
      (10,)
      >>> updates, _ = tx.update(params, state, params)
      >>> updates["a"].shape
      (2, 3)

    Reference:
      Wang et al., LightSeq2, 2022 (arXiv:2110.05722), on the trainer: all parameters in
      one workspace.

    Differs:
      There the model's own tensors are views into the workspace. XLA has no views: the
      vector is made for each step, and what that costs is measured, not assumed
      (`experiments.bench_cloud --only=kernels`).
    """
    inner = optax.with_extra_args_support(inner)

    def init(params) -> Any:
        names = _apart(apart, params)
        return FlatState(inner.init(_join(params, names)), names, _leaves(params))

    def update(updates, state, params=None, **extra) -> tuple[Any, Any]:
        names = state.apart
        _check("updates", updates, state.leaves)
        if params is not None:
            _check("params", params, state.leaves)
        joined = None if params is None else _join(params, names)
        new, after = inner.update(_join(updates, names), state.inner, joined, **extra)
        made = FlatState(after, names, state.leaves)
        return _part(new, updates, names), made

    return optax.GradientTransformationExtraArgs(init, update)


def _apart(choose: str | Callable | None, params: Tree) -> tuple[str, ...]:
    if choose is None:
        return tuple(name for name, leaf in flat(params).items() if _sharded(leaf))
    chosen = where(choose) if isinstance(choose, str) else choose
    return tuple(name for name, yes in flat(chosen(params)).items() if yes)


def _sharded(leaf: Any) -> bool:
    if not isinstance(leaf, jax.core.Tracer):  # of NumPy's there is one, here
        return isinstance(leaf, jax.Array) and not leaf.sharding.is_fully_replicated
    if jax.device_count() > 1:
        raise ValueError(
            "flat_by_dtype cannot see shardings under jit or eval_shape: call init "
            "outside of them, or name the leaves that stay apart (apart=lambda p: "
            "jax.tree.map(lambda _: False, p) for none)"
        )
    return False


def _leaves(tree: Tree) -> tuple[tuple[str, str], ...]:
    found = flat(tree).items()
    return tuple((name, f"{leaf.dtype}{list(leaf.shape)}") for name, leaf in found)


def _check(what: str, tree: Tree, leaves: tuple[tuple[str, str], ...]) -> None:
    found = _leaves(tree)
    if found == leaves:
        return
    then, now = dict(leaves), dict(found)
    for name in (*then, *now):
        before, after = then.get(name, "no leaf"), now.get(name, "no leaf")
        if before != after:
            raise ValueError(
                f"flat_by_dtype: {name!r} was {before} on init and is {after} among "
                f"the {what}: give the same leaves, gradients in their parameters' "
                "dtype (optim.mixed_precision around it widens both)"
            )
    raise ValueError(f"flat_by_dtype: {what} are in another order: {[*then]}, {[*now]}")


def _join(tree: Tree, apart: tuple[str, ...]) -> dict[str, dict[str, jax.Array]]:
    groups: dict[str, list[jax.Array]] = {}
    kept = {}
    for name, leaf in flat(tree).items():
        if name in apart:
            kept[name] = leaf
        else:
            groups.setdefault(str(leaf.dtype), []).append(leaf.reshape(-1))
    return {
        "flat": {name: jnp.concatenate(leaves) for name, leaves in groups.items()},
        "apart": kept,
    }


def _part(joined: Any, like: Tree, apart: tuple[str, ...]) -> Tree:
    """Undoes `_join`, leaf by leaf in the same order."""
    at = dict.fromkeys(joined["flat"], 0)

    def one(path, leaf):
        name = path_name(path)
        if name in apart:
            return joined["apart"][name]
        kind = str(leaf.dtype)
        start, at[kind] = at[kind], at[kind] + leaf.size
        part = joined["flat"][kind][start : start + leaf.size]
        return part.reshape(leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, like)
