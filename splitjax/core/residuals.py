"""What a vjp keeps from the forward to the backward pass, without the parameters."""

import dataclasses
from typing import Any, NamedTuple

import jax

from splitjax.core.tree import Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Residuals:
    """The residuals of a vjp closure as arrays; see `strip`.

    Attributes:
      leaves: arrays; None where a parameter stood.
      treedef: the closure's structure.
      places: for each leaf the number of the parameter that it was, or -1.
    """

    leaves: tuple
    treedef: Any = dataclasses.field(metadata={"static": True})
    places: tuple[int, ...] = dataclasses.field(metadata={"static": True})


class Visit(NamedTuple):
    """What a segment's forward pass gives.

    Attributes:
      out: the smooth message for the next segment; the model's output at the last.
      loss: scalar, at the last segment the loss and everywhere the local ones, so that
        their sum over segments is the loss of the run. Not weighted.
      residuals: for `Split.pull`.
      state: the segment's new state.
      metrics: of the loss, and the stages' `aux`.
    """

    out: Tree
    loss: jax.Array
    residuals: Residuals
    state: Tree
    metrics: dict


def strip(pull: Any, params: Tree) -> Residuals:
    """Takes the parameters out of a vjp closure, inside the traced function made it.

    A closure that leaves `jit` carries what it needs, the parameters among it. Without
    them it may live while the parameters are donated to their update.

    Args:
      pull: what `jax.vjp` returned (a pytree).
      params: the parameters it was taken at, the very same tracers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w = jnp.ones(3)
      >>> _, pull = jax.vjp(lambda w, x: w * x, w, jnp.full(3, 2.0))
      >>> kept = strip(pull, w)
      >>> [g.tolist() for g in restore(kept, w)(jnp.ones(3))]
      [[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]]
    """
    known = {id(leaf): number for number, leaf in enumerate(jax.tree.leaves(params))}
    leaves, treedef = jax.tree.flatten(pull)
    places = tuple(known.get(id(leaf), -1) for leaf in leaves)
    kept = tuple(
        leaf if place < 0 else None for leaf, place in zip(leaves, places, strict=True)
    )
    return Residuals(kept, treedef, places)


def restore(residuals: Residuals, params: Tree) -> Any:
    """Puts the parameters back, and gives the vjp closure.

    Example: see `strip`.
    """
    known = jax.tree.leaves(params)
    leaves = [
        leaf if place < 0 else known[place]
        for leaf, place in zip(residuals.leaves, residuals.places, strict=True)
    ]
    return jax.tree.unflatten(residuals.treedef, leaves)
