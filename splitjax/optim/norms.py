"""Batch norms beside a transform of weights: their scales, and their statistics."""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp

from splitjax.core.matrix import Plan
from splitjax.core.tree import Tree, flat, nearest, where

STATISTICS = "(?:.*/)?batch_stats/.*"
PROBE = 2.0**20  # far above any statistic: what is left of it is what a step keeps


def norm_scales(
    plan: Plan, leaves: Mapping[str, jax.Array], model_state: Tree
) -> dict[str, jax.Array]:
    """What each norm that a plan names multiplies its channels by, by the leaf's path.

    It is `scale / sqrt(var + eps)` with the running variance.

    Args:
      plan: which leaf has which norm behind it.
      leaves: parameters, by path.
      model_state: a tree with `NORM/var`, "batch_stats" anywhere in its paths.

    Raises:
      ValueError: without statistics that are needed, or a norm that is not there.

    Example:
      >>> from splitjax.core.matrix import Rule
      >>> leaves = {"k": jnp.ones((2, 1)), "n/scale": jnp.full(1, 6.0)}
      >>> state = {"n": {"batch_stats": {"var": jnp.full(1, 8.0)}}}
      >>> norm_scales({"k": Rule(1, norm="n", eps=1.0)}, leaves, state)["k"].tolist()
      [2.0]
    """
    named = {path: rule for path, rule in plan.items() if rule.norm}
    if not named:
        return {}
    if model_state is None:
        raise ValueError(
            "some ranks name a batch norm, whose statistics are missing: "
            "tx.update(g, opt, params, model_state=batch_stats)"
        )
    variances = {}
    for path, leaf in flat(model_state).items():
        parts = [part for part in path.split("/") if part != "batch_stats"]
        variances["/".join(parts)] = leaf
    scales = {}
    for path, rule in named.items():
        for name, there in (
            (f"{rule.norm}/scale", leaves),
            (f"{rule.norm}/var", variances),
        ):
            if name not in there:
                raise ValueError(
                    f"the norm {rule.norm!r} of {path!r} has no {name!r}: "
                    f"{nearest(name, list(there))}"
                )
        variance = variances[f"{rule.norm}/var"]
        scales[path] = leaves[f"{rule.norm}/scale"] * jax.lax.rsqrt(variance + rule.eps)
    return scales


def recalibrate(
    renew: Callable[[Tree, Tree], Tree],
    state: Tree,
    inputs: Iterable[tuple[Tree, int]],
    *,
    pattern: str = STATISTICS,
) -> Tree:
    """Running statistics measured again, after weights were changed at one blow.

    A truncated or projected kernel makes other activations than those that the norm
    behind it has statistics of. The new ones are the mean over batches of what a
    forward pass in training measures, each weighed by its examples. How much of an old
    statistic a pass keeps is found from two passes of the first batch, so that any
    momentum will do.

    Args:
      renew: `(state, x) -> state`, a forward pass in training with the new weights.
      state: of the model.
      inputs: `(x, examples in it)` of each batch.
      pattern: which leaves are statistics, by their path.

    Returns:
      The state, its other leaves being the very same objects.

    Raises:
      ValueError: for no examples, a pattern that matches nothing, or a statistic that a
        pass leaves as it is.

    Example:
      >>> def renew(state, x):
      ...     old = state["batch_stats"]["mean"]
      ...     return {"batch_stats": {"mean": 0.9 * old + 0.1 * x.mean()}}
      >>> batches = [(jnp.full(2, 1.0), 2), (jnp.full(2, 4.0), 1)]
      >>> state = {"batch_stats": {"mean": jnp.float32(7.0)}}
      >>> round(float(recalibrate(renew, state, batches)["batch_stats"]["mean"]), 4)
      2.0

    Reference:
      P. Izmailov et al., "Averaging weights leads to wider optima and better
      generalization", 2018, arXiv:1803.05407, which does it after averaging.
    """
    chosen = where(pattern)(state)

    def filled(value):
        return jax.tree.map(
            lambda a, yes: jnp.full_like(a, value) if yes else a, state, chosen
        )

    def each(function, *trees):
        return jax.tree.map(
            lambda yes, *leaves: function(*leaves) if yes else None, chosen, *trees
        )

    kept, total, count = None, None, 0
    for x, size in inputs:
        if size < 1:
            continue
        low = renew(filled(0.0), x)
        if kept is None:
            high = renew(filled(PROBE), x)
            kept = each(lambda a, b: (a - b) / PROBE, high, low)
            if any(float(jnp.max(k)) > 0.9999 for k in jax.tree.leaves(kept)):
                raise ValueError(
                    "a forward pass leaves statistics as they are: renew must apply "
                    "the model with train=True"
                )
        found = each(lambda a, k, size=size: size * a / (1 - k), low, kept)
        total = found if total is None else each(jnp.add, total, found)
        count += size
    if total is None:
        raise ValueError("no example to measure statistics on: give a batch or more")
    means = each(lambda a: a / count, total)
    return jax.tree.map(lambda yes, old, new: new if yes else old, chosen, state, means)
