"""What each block of a model costs, counted on shapes: nothing is computed or compiled.

A block is what a model can be cut between: a stage, or one of the equal blocks of a
repeated stage.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from splitjax.core.message import tree_bytes
from splitjax.core.stage import Repeat, Segment, Stage, ties
from splitjax.core.tree import Tree, spec_of
from splitjax.metrics.macs import inside
from splitjax.parallel.recompute import block_vjp, residual_leaves


@dataclasses.dataclass(frozen=True)
class Block:
    """One block, and what one micro-batch costs in it.

    Attributes:
      name: of its stage; of a repeated one "NAME/i", as `core.cut` names the place
        after it.
      forward_flops: operations of the forward pass, as XLA counts them.
      backward_flops: of the backward pass alone.
      parameter_bytes: of its own parameters.
      input_bytes: of what enters it.
      residual_bytes: of what its vjp keeps, without the parameters.
      reads: names of the blocks whose parameters it reads, too.
    """

    name: str
    forward_flops: float
    backward_flops: float
    parameter_bytes: int
    input_bytes: int
    residual_bytes: int
    reads: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Piece:
    """A block's stage, and where its parameters lie.

    Attributes:
      name: see `Block`.
      stage: the stage, of a repeated one its block.
      key: the name in the model's parameters.
      row: of a repeated stage's leaves, else None.
    """

    name: str
    stage: Stage
    key: str
    row: int | None = None

    def of(self, tree: Tree) -> Tree:
        """The part of the model's parameters (or state) that is this block's."""
        own = tree[self.key]
        if self.row is None:
            return own
        return jax.tree.map(lambda leaf: leaf[self.row], own)


def pieces(stages: Sequence[Stage]) -> tuple[Piece, ...]:
    """The blocks of a model: repeated stages and segments are opened.

    Example:
      >>> from splitjax.core.stage import repeat
      >>> one = Stage("layer", lambda key, spec: ({}, {}),
      ...     lambda p, s, x, *, key, train: (x, s, {}))
      >>> [piece.name for piece in pieces([repeat(one, 2)])]
      ['layer/0', 'layer/1']
    """
    found: list[Piece] = []
    for stage in stages:
        if isinstance(stage, Segment):
            found += pieces(stage.stages)
        elif isinstance(stage, Repeat):
            found += [
                Piece(f"{stage.name}/{stage.first + i}", stage.block, stage.name, i)
                for i in range(stage.count)
            ]
        else:
            found.append(Piece(stage.name, stage, stage.name))
    return tuple(found)


def block_costs(
    stages: Sequence[Stage], params: Tree, state: Tree, x: Tree, *, train: bool = True
) -> tuple[Block, ...]:
    """Costs of each block of a model, each lowered alone.

    XLA counts the body of a loop once, so a repeated stage is never lowered whole; and
    equal blocks are lowered once. The loss is not counted.

    Args:
      stages: the model.
      params: of the whole model, by stage name; arrays or specs, as the rest.
      state: likewise.
      x: the input of one micro-batch.
      train: whether dropout and the like are on.

    Raises:
      ValueError: for a block with a loop of its own, whose count would be wrong.

    Example:
      >>> import jax.numpy as jnp
      >>> double = Stage("dense", lambda key, spec: ({}, {}),
      ...     lambda p, s, x, *, key, train: (x @ p["w"], s, {}))
      >>> w, x = jnp.ones((4, 4)), jnp.ones((2, 4))
      >>> [block] = block_costs([double], {"dense": {"w": w}}, {"dense": {}}, x)
      >>> block.forward_flops, block.backward_flops, block.residual_bytes
      (64.0, 128.0, 32)

    Reference:
      Z. Lai et al., Merak, 2022, arXiv:2206.04959, the costs of automatic partition.

    Differs:
      The backward pass is counted, where Merak's code takes three times the forward
      one. Elementwise operations count as XLA has it.
    """
    params, state, x = spec_of(params), spec_of(state), spec_of(x)
    known: dict[str, float] = {}
    key, made = jax.random.key(0), []
    for piece in pieces(stages):
        own, kept = jax.eval_shape(
            lambda p, s, at=piece: (at.of(p), at.of(s)), params, state
        )
        more = ties(piece.stage, params)

        def forward(p, s, x, more, at=piece):
            # Not folded by name: equal blocks shall be equal programs.
            chance = key if train else None
            return at.stage.apply(p, s, x, key=chance, train=train, **more)[0]

        def both(p, s, x, more, run=forward):
            y, pull = block_vjp(run, p, s, x, more)
            return y, pull(y)

        once = _flops(piece.name, forward, (own, kept, x, more), known)
        made.append(
            Block(
                piece.name,
                once,
                _flops(piece.name, both, (own, kept, x, more), known) - once,
                tree_bytes(own),
                tree_bytes(x),
                tree_bytes(residual_leaves(forward, own, kept, x, more)),
                piece.stage.reads,
            )
        )
        x = jax.eval_shape(forward, own, kept, x, more)
    return tuple(made)


def _flops(name: str, function: Any, specs: tuple, known: dict[str, float]) -> float:
    """Operations of a program; `known` holds those of programs met before."""
    traced = jax.jit(function).trace(*specs)
    for loop in _loops(traced.jaxpr.jaxpr):
        raise ValueError(
            f"block {name!r} has a {loop}, whose body is counted once however often it "
            "runs: give the blocks inside it as stages, or as a core.stage.repeat"
        )
    text = str(traced.jaxpr)
    if text not in known:
        found = traced.lower().cost_analysis() or {}
        known[text] = float(found.get("flops", 0.0))
    return known[text]


def _loops(jaxpr: Any) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "while" or (name == "scan" and eqn.params["length"] > 1):
            yield name
        for inner in inside(eqn.params):
            yield from _loops(inner)
