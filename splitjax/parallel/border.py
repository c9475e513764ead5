"""Where a model may be cut: what is alive between two of its blocks."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from splitjax.core.message import tree_bytes
from splitjax.core.stage import Stage, ties
from splitjax.core.tree import Tree, path_name, spec_of
from splitjax.parallel.cost import pieces


@dataclasses.dataclass(frozen=True)
class Border:
    """The place between two blocks.

    Attributes:
      after: the name of the block before it.
      carry_bytes: of what the block hands to the next one.
      live_bytes: of the part of it that any later block reads.
      skips: values of earlier blocks, or inputs of the model, that later blocks read
        beside it. A cut here would lose them.
      tied: paths of parameters that blocks on both sides read; a repeated stage's rows
        are not looked at.
    """

    after: str
    carry_bytes: int
    live_bytes: int
    skips: tuple[str, ...]
    tied: tuple[str, ...]

    @property
    def legal(self) -> bool:
        """Whether what is handed on is all that the rest of the model needs."""
        return not self.skips


def borders(
    stages: Sequence[Stage], params: Tree, state: Tree, x: Tree
) -> tuple[Border, ...]:
    """What is alive between each two blocks of a model, from one trace of the whole.

    At a border the free variables of the rest of the program, but for parameters and
    state, are compared with what the block hands on. A value that slips past it, as
    through a closure, is found.

    Args:
      stages: the model.
      params: by stage name; arrays or specs, as the rest.
      state: by stage name.
      x: the model's input.

    Returns:
      One for each block but the last.

    Example:
      >>> import jax.numpy as jnp
      >>> add = lambda name: Stage(name, lambda key, spec: ({}, {}),
      ...     lambda p, s, x, *, key, train: (x + 1, s, {}))
      >>> [border] = borders([add("a"), add("b")], {"a": {}, "b": {}},
      ...     {"a": {}, "b": {}}, jnp.ones(3))
      >>> border.after, border.legal, border.live_bytes
      ('a', True, 12)

    Reference:
      Z. Lai et al., Merak, 2022, arXiv:2206.04959: a graph is cut where nothing but one
      value is alive.

    Differs:
      Merak merges the parts that a skip crosses; here such a border is not legal.
      Blocks are given, not found in the graph.
    """
    parts = pieces(stages)
    params, state, x = spec_of(params), spec_of(state), spec_of(x)
    carried: list[Tree] = []

    def run(params, state, x):
        for number, piece in enumerate(parts):
            x, _, _ = piece.stage.apply(
                piece.of(params),
                piece.of(state),
                x,
                key=None,
                train=False,
                **ties(piece.stage, params),
            )
            if number < len(parts) - 1:
                carried.append(spec_of(x))
                x = jax.tree.map(lambda a, n=number: checkpoint_name(a, _mark(n)), x)
        return x

    closed = jax.make_jaxpr(run)(params, state, x)
    stacks = {piece.key for piece in parts if piece.row is not None}
    names = [
        "" if path[0].key in stacks else path_name(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    return tuple(
        _border(closed.jaxpr, number, piece.name, tree_bytes(carry), names, state)
        for number, (piece, carry) in enumerate(zip(parts[:-1], carried, strict=True))
    )


def _mark(number: int) -> str:
    return f"border {number}"


def _border(
    jaxpr: Any, number: int, after: str, carry_bytes: int, names: list[str], state: Tree
) -> Border:
    """One border of a traced model; its first inputs are parameters of these names."""
    marks = [
        place
        for place, eqn in enumerate(jaxpr.eqns)
        if eqn.primitive.name == "name" and eqn.params["name"] == _mark(number)
    ]
    handed = {var for place in marks for var in jaxpr.eqns[place].outvars}
    split = max(marks, default=-1) + 1
    live = {var for var in jaxpr.outvars if not _is_literal(var)}
    for eqn in reversed(jaxpr.eqns[split:]):
        if live & set(eqn.outvars):
            live -= set(eqn.outvars)
            live |= {var for var in eqn.invars if not _is_literal(var)}
    weights = dict(zip(jaxpr.invars, names, strict=False))
    held = len(names) + len(jax.tree.leaves(state))
    free = live - handed - set(jaxpr.invars[:held]) - set(jaxpr.constvars)
    before = {
        var for eqn in jaxpr.eqns[:split] for var in eqn.invars if not _is_literal(var)
    }
    return Border(
        after,
        carry_bytes,
        tree_bytes([var.aval for var in live & handed]),
        tuple(sorted(var.aval.str_short() for var in free)),
        tuple(n for var, n in weights.items() if n and var in live & before),
    )


def _is_literal(var: Any) -> bool:
    return hasattr(var, "val")
