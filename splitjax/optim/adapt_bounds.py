"""Error bounds of compressed activations, from the gradient noise that they make."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from splitjax.core.tap import BOUND, TAP, Noise, without_taps
from splitjax.core.tree import Tree, path_name

MOMENTA = ("mu", "trace")  # what optax calls it


class AdaptState(NamedTuple):
    """State of `adapt_bounds`.

    Attributes:
      inner: of the wrapped transformation.
      count: int32, updates so far; read where no step is given.
    """

    inner: Tree
    count: jax.Array


def noise_bound(
    noise: Noise, momentum: jax.Array, *, target: float = 0.01, a: float | None = None
) -> jax.Array:
    """The bound that makes noise of `target` times the momentum in a kernel's gradient.

    Exactly `target * momentum / sqrt(R * sum(g^2) / 3)`; with `a`, as the paper is
    remembered to fit it, `target * momentum / (a * mean |g| * sqrt(N * R))`.

    Args:
      noise: statistics of a step; see `core.tap.Noise`.
      momentum: mean magnitude of the kernel's momentum, float32 scalar.
      target: noise over momentum.
      a: of the fitted formula; None for the exact one.

    Returns:
      float32 scalar; infinite where there was no gradient.

    Example:
      >>> noise = Noise(*map(jnp.float32, (0, 12, 8, 8, 4, 5, 10, 0)))
      >>> float(noise_bound(noise, jnp.float32(2), target=0.5))
      0.5
    """
    unit = jnp.sqrt(noise.squares / 3)
    if a is not None:
        share = noise.nonzero / jnp.maximum(noise.values, 1)
        mean = noise.gradient / jnp.maximum(noise.gradients, 1)
        unit = a * mean * jnp.sqrt(noise.rows * share)
    return target * momentum / unit


def adapt_bounds(
    inner: optax.GradientTransformation,
    *,
    target: float = 0.01,
    a: float | None = None,
    every: int = 1000,
    floor: float = 1e-6,
    ceiling: float = 1e3,
) -> optax.GradientTransformationExtraArgs:
    """Moves the bounds of `compress_residuals` so that gradients keep their precision.

    Every leaf "tap_bound" of params gets, at steps 0, every, 2 every, ..., the bound
    that `noise_bound` gives for its layer: from the statistics that stand where its
    gradient would, and the momentum of the kernels beside it. The inner transformation
    sees no taps at all.

    Args:
      inner: has momentum: a state with `mu` (Adam) or `trace` (SGD).
      target: gradient noise over mean magnitude of the momentum.
      a: see `noise_bound`.
      every: steps between two changes.
      floor: the least bound. It also stands while momentum is zero.
      ceiling: the greatest bound.

    Returns:
      A transformation that reads `step=` (without one it counts its updates) and needs
      params. Where there was no gradient, or one that is not finite, a bound stays.

    Raises:
      ValueError: for values out of range; on init, for an inner transformation without
        momentum or params without a "tap_bound".

    Example:
      >>> from splitjax.core.tap import tap_bound
      >>> params = {"kernel": jnp.ones((2, 2)), "tap_bound": tap_bound(1.0)}
      >>> tx = adapt_bounds(optax.sgd(0.1, momentum=0.9), target=0.5)
      >>> grads = {"kernel": 2 * jnp.ones((2, 2)),
      ...     "tap_bound": jnp.array([0.0, 12, 8, 8, 4, 5, 10, 0])}
      >>> updates, _ = tx.update(grads, tx.init(params), params, step=0)
      >>> float(2 ** optax.apply_updates(params, updates)["tap_bound"][0])
      0.5

    Reference:
      S. Jin et al., "COMET: A Novel Memory-Efficient Deep Learning Training Framework
      by Using Error-Bounded Lossy Compression", 2021, arXiv:2111.09562.

    Differs:
      The exact formula by default. The paper's own rule could not be checked: target,
      a = 0.32 and every = 1000 are as it is remembered. Adam's momentum is taken before
      its bias is corrected, which makes the first bounds smaller. Micro-batches that
      are averaged (`optax.MultiSteps`) make them smaller, too: statistics are sums.
    """
    if not (target > 0 and every >= 1 and 0 < floor <= ceiling < 2.0**99):
        raise ValueError(
            f"adapt_bounds({target=}, {every=}, {floor=}, {ceiling=}): expected a "
            "target above 0, every from 1 on, and a floor above 0, below the ceiling"
        )
    if a is not None and not a > 0:
        raise ValueError(f"adapt_bounds({a=}): expected a number above 0, or None")
    inner = optax.with_extra_args_support(inner)

    def init(params):
        state = inner.init(without_taps(params))
        kernels = _kernels(_momentum(state))
        for path, _ in _bounds(params):
            if path not in kernels:
                raise ValueError(f"there is no kernel beside {path}/{BOUND}")
        return AdaptState(state, jnp.int32(0))

    def update(updates, state, params=None, *, step=None, **extra):
        if params is None:
            raise ValueError("adapt_bounds needs params: tx.update(g, state, params)")
        plain, rest = without_taps(updates), without_taps(params)
        out, new = inner.update(plain, state.inner, rest, step=step, **extra)
        kernels = _kernels(_momentum(new))
        due = (state.count if step is None else jnp.asarray(step)) % every == 0

        def one(path, leaf, made, statistic):
            name = path_name(path)
            if leaf is None or not name.split("/")[-1].startswith(TAP):
                return made  # None: another's tap, as `dp_kfac` hides its own
            if name.split("/")[-1] != BOUND:
                return jnp.zeros_like(leaf)
            momentum = kernels[_parent(name)]
            bound = noise_bound(Noise(*statistic), momentum, target=target, a=a)
            known = jnp.isfinite(bound) & due
            bound = jnp.log2(jnp.clip(jnp.where(known, bound, 1.0), floor, ceiling))
            change = jnp.where(known, bound - leaf[0], 0.0)
            return jnp.zeros_like(leaf).at[0].set(change)

        out = jax.tree_util.tree_map_with_path(
            one, params, out, updates, is_leaf=lambda node: node is None
        )
        return out, AdaptState(new, state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _bounds(params: Tree) -> list[tuple[str, jax.Array]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = [(path_name(path), leaf) for path, leaf in leaves]
    found = [(_parent(n), leaf) for n, leaf in named if n.split("/")[-1] == BOUND]
    if not found:
        listing = "\n  ".join(name for name, _ in named)
        raise ValueError(f"adapt_bounds finds no {BOUND!r} among:\n  {listing}")
    return found


def _momentum(state: Tree) -> Tree:
    for name in MOMENTA:
        found = optax.tree_utils.tree_get(state, name)
        if found is not None:
            return found
    raise ValueError(
        "adapt_bounds reads momentum from the optimizer's state, and this one has "
        f"neither of {MOMENTA}: use optax.sgd(..., momentum=0.9) or optax.adam"
    )


def _kernels(momentum: Tree) -> dict[str, jax.Array]:
    """Mean magnitudes by the layer's path, over what has two axes or more."""
    sums: dict[str, list] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(momentum):
        if leaf.ndim >= 2:
            size = sums.setdefault(_parent(path_name(path)), [jnp.float32(0), 0])
            size[0] += jnp.sum(jnp.abs(leaf.astype(jnp.float32)))
            size[1] += leaf.size
    return {name: total / max(1, count) for name, (total, count) in sums.items()}
