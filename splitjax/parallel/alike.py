"""Equal blocks in a row among a model's stages, found by the programs that they are."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from splitjax.core.stage import Stage, output_spec, ties
from splitjax.core.tap import TAP
from splitjax.core.tree import Tree, combine, flat, spec_of, split_floats


class Row(NamedTuple):
    """Equal blocks in a row.

    Attributes:
      first: the number of the first block's first stage.
      period: how many stages a block has.
      count: how many blocks there are.
    """

    first: int
    period: int
    count: int

    @property
    def end(self) -> int:
        """The number of the first stage after them."""
        return self.first + self.period * self.count


def blocks_in_a_row(
    stages: Sequence[Stage],
    params: Tree,
    state: Tree,
    x: Tree,
    *,
    places: int,
    train: bool = True,
) -> Row:
    """The most stages of a model that are equal blocks, as many in each place.

    Two stages are equal when they are one program (constants and gradient included) on
    parameters of one structure and shape. A block is one or more stages, whose output
    has the spec of its input. A stage counts when each row of its output depends on
    that row of its input alone, as far as this can be seen: it has no state, reports no
    `aux`, taps no gradient, and reads no other one's parameters.

    Args:
      stages: of the model, in order.
      params: by stage name; arrays, tracers or specs, as the rest.
      state: by stage name.
      x: the input of the first stage.
      places: a number that divides the number of blocks.
      train: whether dropout and the like are on.

    Raises:
      ValueError: when there are not so many; it says what was found instead.

    Example:
      >>> dense = lambda name: Stage(name, init=lambda key, spec: ({}, {}),
      ...     apply=lambda p, s, x, *, key, train: (x @ p["w"], s, {}))
      >>> params = {name: {"w": jax.numpy.ones((4, 4))} for name in "abcde"}
      >>> state, x = dict.fromkeys("abcde", {}), jax.numpy.ones((2, 4))
      >>> blocks_in_a_row([dense(name) for name in "abcde"], params, state, x, places=2)
      Row(first=0, period=1, count=4)
    """
    params, state, x = spec_of(params), spec_of(state), spec_of(x)
    programs: list[Any] = []
    inputs: list[Any] = [_shapes(x)]
    barred: dict[str, str] = {}
    for stage in stages:
        own, kept = params[stage.name], state[stage.name]
        why = _barred(stage, own, kept)
        if why:
            program, x = (
                object(),
                output_spec(stage, own, kept, x, **ties(stage, params)),
            )
        else:
            program, x, why = _program(stage, own, kept, x, train)
        if why:
            barred[stage.name] = why
        programs.append(program)
        inputs.append(_shapes(x))
    found = max(_rows(programs, inputs, places), key=_stages, default=None)
    if found is None:
        names = [stage.name for stage in stages]
        told = "; ".join(f"{name} {why}" for name, why in barred.items())
        raise ValueError(
            f"pipe={places}: the cloud's half has no {places} equal blocks in a row "
            f"among its stages {names}"
            + (f" ({told})" if told else "")
            + ": cut nearer to the input, or give the devices to 'data' or 'tensor'"
        )
    return found


def _stages(row: Row) -> int:
    return row.period * row.count


def _rows(programs: list, inputs: list, places: int) -> Iterator[Row]:
    """Every row of a number of blocks that `places` divides, short blocks first."""
    size = len(programs)
    for period in range(1, size // places + 1):
        for first in range(size - period * places + 1):
            if inputs[first] != inputs[first + period]:
                continue
            end = first + period
            while end < size and programs[end] == programs[end - period]:
                end += 1
            count = (end - first) // period
            if count >= places:
                yield Row(first, period, count - count % places)


def _barred(stage: Stage, params: Tree, state: Tree) -> str:
    """Why a stage is in no block, as far as it can be seen without a trace."""
    if stage.reads:
        return f"reads the parameters of {stage.reads}"
    if jax.tree.leaves(state):
        return "has a state, of the statistics of a batch"
    if any(part.startswith(TAP) for name in flat(params) for part in name.split("/")):
        return "taps its gradient, as K-FAC does"
    return ""


def _program(
    stage: Stage, params: Tree, state: Tree, x: Tree, train: bool
) -> tuple[Any, Tree, str]:
    """What equal stages have alike, the output's spec, and why it is in no block."""

    def run(params, x, key):
        floats, rest = split_floats((params, x))

        def forward(floats):
            params, x = combine(floats, rest)
            own = key if train else None
            y, _, aux = stage.apply(params, state, x, key=own, train=train)
            return split_floats(y)[0], (y, aux)

        if not train:
            return forward(floats)[1]
        # A rule of its own may hold other numbers on the way back alone.
        out, pull, made = jax.vjp(forward, floats, has_aux=True)
        return *made, pull(jax.tree.map(jnp.ones_like, out))

    key = jax.eval_shape(lambda: jax.random.key(0))
    closed, (y, aux, *_) = jax.make_jaxpr(run, return_shape=True)(params, x, key)
    y = spec_of(y)
    if jax.tree.leaves(aux):
        return object(), y, f"reports {sorted(flat(aux))} of a whole batch"
    # A function that differentiates another is printed with its place in memory.
    text = re.sub(r"\b0x[0-9a-f]+", "", str(closed.jaxpr))
    constants = tuple(np.asarray(one).tobytes() for one in _constants(closed))
    return (text, constants, jax.tree.structure(params), _shapes(x)), y, ""


def _shapes(tree: Tree) -> tuple:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _constants(closed: Any) -> Iterator[Any]:
    """Arrays that a program holds, and those of the programs that it calls."""
    yield from closed.consts
    for eqn in closed.jaxpr.eqns:
        for value in eqn.params.values():
            for one in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(one, ClosedJaxpr):
                    yield from _constants(one)
