"""The leak loss: the edge's own price for what its messages tell of its inputs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.core.cut import Cut
from splitjax.core.stage import join, with_apply, with_loss
from splitjax.core.tree import Tree
from splitjax.privacy.distance_correlation import distance_correlation
from splitjax.privacy.rows import aligned

Metric = Callable[..., jax.Array]


def leak_loss(
    alpha: float, *, metric: Metric = distance_correlation, most: int = 512
) -> Callable[[Tree, Tree], jax.Array]:
    """A loss of the edge's own: `alpha * metric(input, output)` of its last stage.

    It needs no label and sends nothing: its gradient joins the one that comes back over
    the link. Attach it with `core.stage.with_loss` (a stage) or `guarded` (a segment).

    It lowers a measure of dependence, no more. A large alpha makes the output constant:
    nothing leaks and nothing is learned; `sign_entropy` tells.

    Args:
      alpha: the weight, not negative.
      metric: `(x, z, mask=) -> scalar` on rows.
      most: rows that are compared: of more, as tokens are, every second, third, ...

    Raises:
      ValueError: for a negative or non-finite alpha; on use for a batch of one row.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[0.0], [1.0], [5.0]])
      >>> float(leak_loss(2.0)(x, -x))
      2.0

    Reference:
      P. Vepakomma et al., "NoPeek: Information leakage reduction to share activations
      in distributed deep learning", 2020, arXiv:2008.09161; used beside binary layers
      by N. D. Pham et al., "Binarizing Split Learning for Data Privacy Enhancement and
      Computation Reduction", 2022, arXiv:2206.04864.

    Differs:
      Padding and short batches are left out by the mask; the weights that the second
      paper takes are not known to us.
    """
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"leak_loss(alpha={alpha}): the weight is 0 or more, finite")

    def loss(x, y):
        (x, z), mask = aligned(x, y)
        step = -(-len(x) // most)
        mask = mask if mask is None else mask[::step]
        return jnp.float32(alpha) * metric(x[::step], z[::step], mask=mask)

    return loss


def guarded(
    made: Cut, loss: Callable[[Tree, Tree], jax.Array], *, behind: str = ""
) -> Cut:
    """Adds a local loss to the first segment of a cut: of its input and its output.

    Args:
      made: the cut.
      loss: `(x, y) -> scalar`, such as `leak_loss`.
      behind: a stage of the segment whose output is taken as the input: of texts, whose
        ids are no quantities, the embedding.

    Raises:
      ValueError: when `behind` is the segment's last stage, or is not in it.

    Example:
      >>> import jax.numpy as jnp
      >>> from splitjax.core.cut import cut
      >>> from splitjax.core.stage import Stage
      >>> add = lambda name: Stage(name, init=lambda key, spec: ({}, {}),
      ...     apply=lambda p, s, x, *, key, train: (x + 1, s, {}))
      >>> made = guarded(cut([add("a"), add("b"), add("c")], after="b"),
      ...     lambda x, y: (y - x).sum())
      >>> empty = {"a": {}, "b": {}}
      >>> _, _, aux = made.segments[0].apply(empty, empty, jnp.ones(1), key=None,
      ...     train=True)
      >>> float(aux["loss"])
      2.0
    """
    first, *others = made.segments
    names = [stage.name for stage in first.stages]
    start = 0
    if behind:
        if behind not in names[:-1]:
            raise ValueError(
                f"no stage lies between {behind!r} and the cut, so the edge has "
                f"nothing to hide it with: its stages are {', '.join(names)}"
            )
        start = names.index(behind) + 1
    head, tail = (join(part) for part in (first.stages[:start], first.stages[start:]))
    tail = with_loss(tail, loss)

    def apply(params, state, x, **kwargs):
        new_state, aux = {}, {}
        for part, mine in ((head, names[:start]), (tail, names[start:])):
            own = ({name: tree[name] for name in mine} for tree in (params, state))
            x, changed, more = part.apply(*own, x, **kwargs)
            new_state |= changed
            loss = more.pop("loss", None)
            aux |= more
            if loss is not None:
                aux["loss"] = aux.get("loss", 0.0) + loss
        return x, new_state, aux

    segments: Any = (with_apply(first, apply), *others)
    return dataclasses.replace(made, segments=segments)


def sign_entropy(z: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """The mean entropy of the signs of z's columns, in bits: 0 for a constant code.

    Args:
      z: (B, ...) values; above the column's mean counts as one, so that a code which
        varies has entropy whether it is binary or not. Equal ones have none.
      mask: (B,) bool; rows with False are left out.

    Returns:
      float32 scalar in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> z = jnp.array([[1.0, 1.0], [1.0, -1.0]])
      >>> float(sign_entropy(z)), float(sign_entropy(0 * z))
      (0.5, 0.0)
    """
    flat = z.reshape(z.shape[0], -1).astype(jnp.float32)
    valid = jnp.ones(z.shape[0]) if mask is None else mask
    valid = valid.astype(jnp.float32)[:, None]
    flat = jnp.where(valid > 0, flat, 0.0)
    count = jnp.maximum(valid.sum(), 1.0)
    mean = flat.sum(0, keepdims=True) / count
    scale = jnp.max(jnp.abs(flat), 0, keepdims=True)
    above = (flat > mean + 1e-6 * scale).astype(jnp.float32)
    share = (above * valid).sum(0) / count
    return jnp.mean(_plogp(share) + _plogp(1 - share))


def _plogp(p: jax.Array) -> jax.Array:
    inside = p > 0
    return jnp.where(inside, -p * jnp.log2(jnp.where(inside, p, 1.0)), 0.0)
