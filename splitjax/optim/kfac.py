"""DP-KFAC: a second-order step whose factors are owned, and never sent."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from splitjax.core.tree import Tree, flat, path_name
from splitjax.optim.curvature import TAPS, without_own
from splitjax.optim.kronecker import (
    METHODS,
    Curvature,
    averaged,
    identity,
    inverted,
    preconditioned,
)
from splitjax.optim.stack import (
    Stack,
    check_shards,
    gathered,
    gathered_taps,
    given_back,
    stacks,
)


class KfacState(NamedTuple):
    """State of `dp_kfac`.

    Attributes:
      count: int32, updates so far; read where no step is given.
      curvature: by the name of a stack; its first axis is shared out over the mesh.
      skipped: int32, layers' sums that were left out since they were not finite.
      failed: int32, inversions by Cholesky that failed, and were made by eigenvectors.
      plain: int32, steps of layers that took the plain gradient for want of an inverse.
      inner: of the wrapped transformation.
    """

    count: jax.Array
    curvature: dict[str, Curvature]
    skipped: jax.Array
    failed: jax.Array
    plain: jax.Array
    inner: Tree


def dp_kfac(
    inner: optax.GradientTransformation,
    *,
    learning_rate: float | Callable[[Any], Any] | None = None,
    damping: float = 1e-3,
    ema_old: float = 0.95,
    factor_every: int = 1,
    inverse_every: int = 1,
    kl_clip: float | None = 1e-3,
    method: str = "cholesky",
    axis_name: str | None = None,
    shards: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Preconditions the gradients of tapped layers, and hands all on to `inner`.

    With W the gradient of a kernel and its bias, a the layer's inputs with a trailing 1
    and g the gradients of its outputs:

      W <- (A + pi sqrt(damping) I)^-1 W (G + sqrt(damping) / pi I)^-1

    where A and G are running averages of E[a a^T] and E[g g^T] (see `kronecker`). Then
    W <- nu W, with nu = min(1, sqrt(kl_clip / |sum <W, gradient> learning_rate^2|)),
    the sum over all of these layers. `inner` (an optax chain, with momentum, weight
    decay, clips) sees none of these taps.

    On a mesh, inside of `shard_map` over `axis_name`: layers of one shape are a stack,
    of which every device owns an equal part. Gradients are averaged by a
    reduce-scatter, so that a device gets those of its own layers; it preconditions them
    with factors from its own examples only; an all-gather gives the result to all. That
    sends as much as the all-reduce of SGD (and four counts), and factors are nowhere
    twice. All other leaves are averaged plainly. Take gradients at `on_owner(params)`.

    Args:
      inner: what steps; `optax.sgd(rate, momentum=0.9)`, say.
      learning_rate: of `inner`, a number or a schedule of the step; for kl_clip.
      damping: above 0.
      ema_old: the weight of the old factors in their average, from 0 to below 1.
      factor_every: steps between two that collect; others do not compute factors.
      inverse_every: steps between two inversions, `factor_every` or more.
      kl_clip: the bound on the size of a step; None: none.
      method: "cholesky", or "eigen": divides by da dg^T + damping between eigenvectors,
        which keeps the damping whole and costs more: eigenvectors of both factors.
      axis_name: of the data-parallel axis; None: one device.
      shards: its size.

    Returns:
      A transformation that reads `step=` (without one it counts its updates), and needs
      params that have taps (`curvature.with_taps`). Their update is 0, but for a mark
      at their last entry, which says whether the next step collects. What is not finite
      in a gradient passes on: wrap `inner` in `optax.apply_if_finite`.

    Raises:
      ValueError: for values out of range; on init, without taps; on update, without
        params, or on a mesh of another size.

    Example:
      >>> from splitjax.optim.curvature import TAPS, watch, with_taps
      >>> params = with_taps({"kernel": jnp.array([[1.0], [1.0]])})
      >>> x = jnp.array([[1.0, 0.0], [0.0, 0.1]])  # ill-conditioned
      >>> tx = dp_kfac(optax.sgd(0.5), damping=1e-12, ema_old=0.0, kl_clip=None)
      >>> def loss(p):
      ...     y = watch(lambda x: x @ p["kernel"], x, p[TAPS])
      ...     return jnp.square(y).mean()
      >>> updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
      >>> u = updates["kernel"][:, 0]
      >>> bool(jnp.allclose(u[0], u[1], rtol=1e-3))  # as far in both directions
      True

    Reference:
      L. Zhang, S. Shi, W. Wang, B. Li, "Scalable K-FAC Training for Deep Neural
      Networks with Distributed Preconditioning", 2022, arXiv:2206.15143; J. Martens,
      R. Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate
      Curvature", 2015, arXiv:1503.05671.

    Differs:
      Not the K-FAC of the whole batch (nor is the paper's): a layer's factors are of
      one device's examples; equal only where all devices have the same. Reduce-scatter
      and all-gather in the place of all-reduce and broadcast. A device owns neighbors
      of a stack, not every W-th layer. `ema_old` weighs the old factors, while the
      authors' .95 weighs the new. Damping never enters the averages. A row that is
      padding counts as an example whose g is 0.
    """
    if not damping > 0:
        raise ValueError(f"damping={damping}: it must be above 0, as 1e-3")
    if not 0 <= ema_old < 1:
        raise ValueError(
            f"ema_old={ema_old}: the weight of the old factors, from 0 to below 1"
        )
    if not 1 <= factor_every <= inverse_every:
        raise ValueError(
            f"factor_every={factor_every}, inverse_every={inverse_every}: 1 step or "
            "more, and inverses no oftener than factors: they would be the same"
        )
    if kl_clip is not None and (not kl_clip > 0 or learning_rate is None):
        raise ValueError(
            f"kl_clip={kl_clip}, learning_rate={learning_rate}: a bound above 0 and "
            "the rate of `inner`, which it depends on; or kl_clip=None"
        )
    if method not in METHODS:
        raise ValueError(f"method={method!r}: one of {METHODS}")
    if axis_name is None and shards != 1:
        raise ValueError(f"shards={shards} are of a mesh: give its axis_name")
    inner = optax.with_extra_args_support(inner)

    def init(params):
        known = {
            one.name: identity(one.length, one.inputs, one.outputs, method)
            for one in stacks(params, shards)
        }
        one, two, three, four = (jnp.int32(0) for _ in range(4))  # to be donated
        held = inner.init(without_own(params))
        return KfacState(one, known, two, three, four, held)

    def update(updates, state, params=None, *, step=None, **extra):
        if params is None:
            raise ValueError("dp_kfac needs params: tx.update(g, state, params)")
        check_shards(axis_name, shards)
        now = jnp.asarray(state.count if step is None else step, jnp.int32)
        leaves, parts = flat(updates), stacks(params, shards)
        known, made = {}, {}
        size, bad = jnp.float32(0), jnp.zeros(3, jnp.float32)
        for one in parts:
            grads = _scattered(gathered(one, leaves), axis_name, shards)
            old = state.curvature[one.name]
            known[one.name], found = _learned(one, old, leaves, now)
            made[one.name] = preconditioned(known[one.name], grads, damping)
            size, bad = size + jnp.sum(made[one.name] * grads), bad + found
        totals = jnp.concatenate([size[None], bad])
        totals = totals if axis_name is None else jax.lax.psum(totals, axis_name)
        nu, new = _nu(totals[0], now), {}
        for one in parts:
            whole = nu * made[one.name]
            if axis_name is not None:
                whole = jax.lax.all_gather(
                    whole, axis_name, axis=0, tiled=True, to="invarying"
                )
            new |= given_back(one, whole, leaves)
        plain = _rest(without_own(updates), new, axis_name)
        out, held = inner.update(
            plain, state.inner, without_own(params), step=step, **extra
        )
        was = jnp.stack([state.skipped, state.failed, state.plain])
        skipped, failed, bare = was + totals[1:].astype(jnp.int32)
        later = (now + 1) % factor_every != 0
        marked = _with_marks(out, params, later.astype(jnp.float32))
        return marked, KfacState(state.count + 1, known, skipped, failed, bare, held)

    def _learned(one, old, leaves, now):
        """Factors and inverses of this step, and what went wrong, (3,) float32."""

        def collect(old):
            a, g, count = _mine(one, gathered_taps(one, leaves), axis_name)
            return averaged(old, a, g, count, ema_old)

        def invert(old):
            return inverted(old, damping, method)

        def keep(old):
            return old, old.plain & False

        known, skipped = jax.lax.cond(now % factor_every == 0, collect, keep, old)
        known, failed = jax.lax.cond(now % inverse_every == 0, invert, keep, known)
        found = [x.sum(dtype=jnp.float32) for x in (skipped, failed, known.plain)]
        return known, jnp.stack(found)

    def _nu(size, now):
        if kl_clip is None:
            return jnp.float32(1)
        # Optax raises a float to an integer power; a strict user must not suffer.
        with jax.numpy_dtype_promotion("standard"):
            rate = learning_rate(now) if callable(learning_rate) else learning_rate
        size = jnp.abs(size) * jnp.square(jnp.asarray(rate, jnp.float32))
        return jnp.where(size > kl_clip, jnp.sqrt(kl_clip / size), 1.0)

    return optax.GradientTransformationExtraArgs(init, update)


def left_out(tree: Tree) -> dict[str, int]:
    """What K-FAC had to leave out so far: the counts of its states that are not 0.

    Args:
      tree: with any number of `KfacState` in it, as an optimizer's state; they add up.

    Example:
      >>> from splitjax.optim.curvature import with_taps
      >>> params = with_taps({"kernel": jnp.ones((2, 1))})
      >>> state = dp_kfac(optax.sgd(1), kl_clip=None).init(params)
      >>> left_out((state, state._replace(skipped=jnp.int32(3))))
      {'skipped': 3}
    """

    def is_state(node):
        return isinstance(node, KfacState)

    states = [s for s in jax.tree.leaves(tree, is_leaf=is_state) if is_state(s)]
    names = ("skipped", "failed", "plain")
    counts = {name: sum(int(getattr(s, name)) for s in states) for name in names}
    return {name: count for name, count in counts.items() if count}


def _scattered(whole: jax.Array, axis_name: str | None, shards: int) -> jax.Array:
    """Of gradients the mean over devices, of a device's own layers."""
    if axis_name is None:
        return whole
    part = jax.lax.psum_scatter(whole, axis_name, scatter_dimension=0, tiled=True)
    return part / shards


def _mine(one: Stack, sums: tuple, axis_name: str | None) -> tuple:
    if axis_name is None:
        return sums
    size = one.length // one.shards
    start = jax.lax.axis_index(axis_name) * size
    return tuple(jax.lax.dynamic_slice_in_dim(x, start, size) for x in sums)


def _rest(updates: Tree, new: dict, axis_name: str | None) -> Tree:
    """Updates with new ones where they are, and the mean over devices elsewhere."""

    def one(path, leaf):
        if (made := new.get(path_name(path))) is not None:
            return made
        return leaf if axis_name is None else jax.lax.pmean(leaf, axis_name)

    return jax.tree_util.tree_map_with_path(one, updates)


def _with_marks(out: Tree, params: Tree, later: jax.Array) -> Tree:
    """Updates with those of K-FAC's taps: the change of their marks."""

    def one(path, leaf, made):
        if f"{TAPS}/" not in path_name(path):
            return made
        change = later - leaf[..., -1, -1]
        return jnp.zeros_like(leaf).at[..., -1, -1].set(change)

    return jax.tree_util.tree_map_with_path(
        one, params, out, is_leaf=lambda node: node is None
    )
