"""Whether a program runs every tapped layer, and once."""

from collections.abc import Callable
from typing import Any

import jax

from splitjax.core.tree import Tree, flat
from splitjax.optim.curvature import TAPS


def check_taps(run: Callable, params: Tree, *args: Any) -> None:
    """Raises unless `run(params, *args)` uses every tap of params once.

    Args:
      run: what is differentiated, as a loss; it is traced, not run.
      params: with taps, arrays or specs.
      *args: what else it takes, arrays or specs.

    Raises:
      ValueError: with the paths of layers that never run, or that run twice (a shared
        layer): their factors would be wrong.

    Example:
      >>> from splitjax.optim.curvature import with_taps
      >>> params = with_taps({"a": {"kernel": jax.numpy.ones((2, 2))}})
      >>> check_taps(lambda p: p["a"]["kernel"].sum(), params)
      Traceback (most recent call last):
      ...
      ValueError: K-FAC's taps of a: the layer never runs, or does not collect ...
    """
    closed = jax.make_jaxpr(run)(params, *args)
    names = flat(params)
    tracked = {
        var: (name.rpartition(f"{TAPS}/")[0].rstrip("/") or "the layer", "")
        for name, var in zip(names, closed.jaxpr.invars, strict=False)
        if name.endswith(f"{TAPS}/tap_a")
    }
    uses: dict[tuple[str, str], int] = {}
    _count(closed.jaxpr, tracked, 1, uses)
    layers = list(dict.fromkeys(name for name, _ in tracked.values()))
    used = {name for name, _ in uses}
    if never := [name for name in layers if name not in used]:
        raise ValueError(
            f"K-FAC's taps of {', '.join(never)}: the layer never runs, or does not "
            "collect (Dense and Conv of splitjax.models do): leave it out by the "
            "pattern of with_taps"
        )
    if twice := sorted({name for (name, _), many in uses.items() if many > 1}):
        raise ValueError(
            f"K-FAC's taps of {', '.join(twice)}: the layer runs more than once in a "
            "step, and its factors would mix them: leave it out by the pattern of "
            "with_taps"
        )


def _count(jaxpr: Any, tracked: dict, times: int, uses: dict) -> None:
    """Adds up how often each tracked leaf reaches a layer."""
    tracked = dict(tracked)
    for eqn in jaxpr.eqns:
        hits = [
            (place, tracked[var])
            for place, var in enumerate(eqn.invars)
            if not hasattr(var, "val") and var in tracked
        ]
        if not hits:
            continue
        name = eqn.primitive.name
        if name.startswith("custom_vjp_call"):
            for _, leaf in hits:
                uses[leaf] = uses.get(leaf, 0) + times
            continue
        inner = [getattr(part, "jaxpr", part) for part in _parts(eqn.params)]
        inner = [part for part in inner if hasattr(part, "eqns")]
        branches: list[dict] = []
        for part in inner:  # their inputs are the last of the equation's
            skip = len(eqn.invars) - len(part.invars)
            own = {part.invars[at - skip]: leaf for at, leaf in hits if at >= skip}
            shared = name == "scan" and min(hits)[0] < eqn.params["num_consts"]
            again = times * (eqn.params["length"] if shared else 1)
            branches.append({})
            _count(part, own, again, branches[-1])
        for leaf in {leaf for branch in branches for leaf in branch}:
            most = max(branch.get(leaf, 0) for branch in branches)
            uses[leaf] = uses.get(leaf, 0) + most
        if not inner:  # one row of a stack is another layer than the next
            row = "" if name in ("convert_element_type", "pvary", "copy") else name
            for _, leaf in hits:
                made = leaf[1] + (f"/{row}{eqn.params}" if row else "")
                tracked |= {out: (leaf[0], made) for out in eqn.outvars}


def _parts(params: dict) -> list:
    """What an equation holds, branches among it."""
    found: list = []
    for value in params.values():
        found.extend(value if isinstance(value, (tuple, list)) else [value])
    return found
