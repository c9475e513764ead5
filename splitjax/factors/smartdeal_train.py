"""Training with SmartDeal: weights kept near the set, or codes moved by exponents."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from splitjax.core.factor import is_factor
from splitjax.core.owners import refuse_closed
from splitjax.core.tree import Tree
from splitjax.factors.power_of_two import check_exponents, is_power_of_two
from splitjax.factors.smartdeal import SmartDeal, fit

MAX_BAR = 127  # counters are int8


def project(params: Tree, where: Callable[[Tree], Tree], **options) -> Tree:
    """Replaces the chosen kernels by the nearest ones that SmartDeal can hold.

    They stay dense arrays, to be trained on. `where` sees inside of factors, so that
    the arrays of a product can be chosen.

    Args:
      params: the parameters.
      where: which leaves.
      **options: of `smartdeal.fit`: theta, span, layout...

    Raises:
      ValueError: for the codes of a `SmartDeal` factor, which are on the set.

    Example:
      >>> from splitjax.core.tree import where
      >>> params = {"kernel": jnp.eye(6, 2) * 0.7, "bias": jnp.ones(2)}
      >>> new = project(params, where("kernel"), theta=0.1, span=2)
      >>> bool(jnp.allclose(new["kernel"], params["kernel"], atol=1e-6))
      True
    """
    chosen = where(params)
    refuse_closed(params, chosen)
    return jax.tree.map(
        lambda yes, leaf: _near(leaf, options) if yes else leaf, chosen, params
    )


def keep_near(
    where: Callable[[Tree], Tree], *, every: int, **options
) -> optax.GradientTransformationExtraArgs:
    """Projects the chosen kernels onto SmartDeal's set after every so many updates.

    The recipe for fast inference: train dense weights, and return to the set after
    every epoch. It is last in its chain, and reads `step`, the number of updates
    before this one: an unbatched one, so that it is a branch under vmap. A kernel that
    is not finite is left as it is.

    Args:
      where: which leaves, as `project`.
      every: updates between two projections, at least 1.
      **options: of `smartdeal.fit`.

    Returns:
      A transformation that needs `params` and `step=`. `p + (q - p)` is q but for
      rounding: `factorize` after the last update makes it exact.

    Raises:
      ValueError: for `every` below 1, and on use without params or step.

    Example:
      >>> from splitjax.core.tree import where
      >>> near = keep_near(where("w"), every=2, theta=0.1, span=2)
      >>> tx = optax.chain(optax.sgd(0.1), near)
      >>> p = {"w": jnp.eye(6, 2) + 0.01}
      >>> zero, state = jax.tree.map(jnp.zeros_like, p), tx.init(p)
      >>> moved = [tx.update(zero, state, p, step=s)[0]["w"].any() for s in (0, 1)]
      >>> [bool(m) for m in moved]
      [False, True]

    Reference:
      SmartDeal, 2021, arXiv 2101.01163, after the authors' published code.
    Differs:
      Weight averaging is not part of it.
    """
    if every < 1:
        raise ValueError(f"keep_near(every={every}): at least 1")

    def update(updates, state, params=None, *, step=None, **extra):
        if params is None or step is None:
            raise ValueError("keep_near needs update(..., params, step=number)")

        def onto(updates):
            new = project(optax.apply_updates(params, updates), where, **options)
            return jax.tree.map(
                lambda yes, n, p, u: n - p if yes else u,
                where(params),
                new,
                params,
                updates,
            )

        due = (jnp.asarray(step) + 1) % every == 0
        return jax.lax.cond(due, onto, lambda updates: updates, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


class Buckets(NamedTuple):
    """The state of `bucket_switch`: counters int8, places that may move bool."""

    inner: Any
    counter: Tree
    mask: Tree


def bucket_switch(
    inner: optax.GradientTransformation,
    *,
    bar: int = 1,
    threshold: float = 0.0,
    min_exp: int = -8,
    max_exp: int = 5,
    reset_every: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Moves codes by one exponent where updates agree on a direction.

    Each update of `inner` that is larger than the threshold counts +1 or -1, by its
    sign. Where the count reaches the bar it starts anew, and the code doubles if that
    is the direction of its sign, or else halves; below the least power it becomes 0.
    A 0 becomes the least power of that direction, but only where a code stood when the
    state was made: the others stay 0 for good.

    A code is `+-2^k` before and after, exactly: updates are doublings and halvings.

    Args:
      inner: such as `optax.sgd(0.1, momentum=0.9)`.
      bar: counts that move a code, from 1 to 127.
      threshold: smaller updates do not count.
      min_exp: the least exponent.
      max_exp: the greatest one; at it a code stays.
      reset_every: updates after which all counters start anew (an epoch's), read from
        `step=`; None for never.

    Returns:
      A transformation for codes alone: see `on_codes`.

    Raises:
      ValueError: for a bar or exponents outside of their range; when made for a leaf
        that does not hold codes.

    Example:
      >>> tx = bucket_switch(optax.sgd(1.0), bar=2)
      >>> codes = jnp.array([0.5, -0.5, 0.0])
      >>> state = tx.init(codes)
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.full(3, -1.0), state, codes)
      ...     codes = optax.apply_updates(codes, updates)
      >>> codes.tolist()
      [1.0, -0.25, 0.0]

    Reference:
      SmartDeal, 2021, arXiv 2101.01163, after the authors' published code.
    Differs:
      A code that halves below the least power becomes 0, and may come back; what the
      authors do there is not known to us. Counters do not start anew by themselves.
    """
    if not 1 <= bar <= MAX_BAR:
        raise ValueError(f"bucket_switch(bar={bar}): from 1 to {MAX_BAR}")
    if not threshold >= 0:
        raise ValueError(f"bucket_switch(threshold={threshold}): 0 or more")
    if reset_every is not None and reset_every < 1:
        raise ValueError(
            f"bucket_switch(reset_every={reset_every}): at least 1, or None"
        )
    inner = optax.with_extra_args_support(inner)

    def init(params):
        jax.tree.map(lambda leaf: _check_codes(leaf, min_exp, max_exp), params)
        counter = jax.tree.map(lambda c: jnp.zeros(c.shape, jnp.int8), params)
        mask = jax.tree.map(lambda c: c != 0, params)
        return Buckets(inner.init(params), counter, mask)

    def update(updates, state, params=None, *, step=None, **extra):
        if params is None or (reset_every and step is None):
            raise ValueError(
                "bucket_switch needs update(..., params), and step=number where "
                "reset_every is given"
            )
        moves, new = inner.update(updates, state.inner, params, step=step, **extra)
        counter = state.counter
        if reset_every:
            fresh = jnp.asarray(step) % reset_every == 0
            counter = jax.tree.map(lambda n: jnp.where(fresh, 0 * n, n), counter)

        def count(move, n, mask):
            vote = jnp.where(jnp.abs(move) > threshold, jnp.sign(move), 0)
            total = n.astype(jnp.int32) + vote.astype(jnp.int32)
            return jnp.where(mask, jnp.clip(total, -MAX_BAR, MAX_BAR), 0)

        counter = jax.tree.map(count, moves, counter, state.mask)
        steps = jax.tree.map(
            lambda c, n: _switch(c, n, bar, min_exp, max_exp), params, counter
        )
        counter = jax.tree.map(
            lambda n: jnp.where(jnp.abs(n) >= bar, 0, n).astype(jnp.int8), counter
        )
        return steps, Buckets(new, counter, state.mask)

    return optax.GradientTransformationExtraArgs(init, update)


def codes(params: Tree) -> Tree:
    """A `where`: True at the codes of SmartDeal factors.

    Raises:
      ValueError: when there are none.

    Example:
      >>> factor = SmartDeal(jnp.ones((1, 1, 4, 2)), jnp.ones((1, 1, 2, 2)), (8,))
      >>> chosen = codes({"kernel": factor, "bias": jnp.ones(1)})
      >>> chosen["kernel"].codes, chosen["kernel"].basis, chosen["bias"]
      (True, False, False)
    """

    def one(node):
        if isinstance(node, SmartDeal):
            return SmartDeal(True, False, node.inputs, node.conv)  # type: ignore
        return jax.tree.map(lambda _: False, node)

    chosen = jax.tree.map(one, params, is_leaf=lambda n: isinstance(n, SmartDeal))
    if not any(jax.tree.leaves(chosen)):
        raise ValueError("there is no SmartDeal factor in these parameters")
    return chosen


def on_codes(
    tx: optax.GradientTransformation, rest: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """One transformation for the codes, another for bases, biases and all others.

    Example:
      >>> factor = SmartDeal(jnp.ones((1, 1, 4, 2)), jnp.ones((1, 1, 2, 2)), (8,))
      >>> tx = on_codes(bucket_switch(optax.sgd(1.0)), optax.sgd(0.1))
      >>> grads = jax.tree.map(jnp.ones_like, factor)
      >>> updates, _ = tx.update(grads, tx.init(factor), factor)
      >>> float(updates.codes[0, 0, 0, 0]), round(float(updates.basis[0, 0, 0, 0]), 3)
      (-0.5, -0.1)
    """

    def labels(params):
        return jax.tree.map(lambda yes: "codes" if yes else "rest", codes(params))

    return optax.with_extra_args_support(
        optax.partition({"codes": tx, "rest": rest}, labels)
    )


def _near(leaf, options):
    if is_factor(leaf):
        return leaf
    new = fit(leaf, **options).materialize()
    return jnp.where(jnp.isfinite(leaf).all(), new, leaf)


def _switch(code, count, bar, min_exp, max_exp):
    """The update of one code: at most one exponent, 0 where it does not move."""
    least = jnp.array(2.0**min_exp, code.dtype)
    direction = jnp.sign(count).astype(code.dtype)
    grows = jnp.sign(code) == direction
    halved = jnp.where(jnp.abs(code) <= least, -code, -code / 2)
    doubled = jnp.where(jnp.abs(code) * 2 > 2.0**max_exp, jnp.zeros_like(code), code)
    move = jnp.where(code == 0, direction * least, jnp.where(grows, doubled, halved))
    return jnp.where(jnp.abs(count) >= bar, move, jnp.zeros_like(code))


def _check_codes(leaf, min_exp, max_exp):
    check_exponents(min_exp, max_exp, leaf.dtype)
    if not isinstance(leaf, jax.core.Tracer) and not bool(is_power_of_two(leaf).all()):
        raise ValueError(
            f"bucket_switch is for codes, which are 0 or +-2^k; a leaf {leaf.shape} "
            "holds other numbers: give it to others by on_codes(bucket_switch(...), tx)"
        )
