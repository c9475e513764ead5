"""A stage: a pure, named piece of a model. A model is an ordered tuple of them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.core.keys import fold
from splitjax.core.tree import Tree, nearest

Init = Callable[[jax.Array, Tree], tuple[Tree, Tree]]
Apply = Callable[..., tuple[Tree, Tree, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A pure piece of a model.

    Attributes:
      name: unique in its model; it names the parameters and folds the random key.
      init: `(key, spec) -> (params, state)`, with `spec` the input's shapes and dtypes.
      apply: `(params, state, x, *, key, train) -> (y, state, aux)`. `x` is an array or
        a pytree; `state` is what training moves besides parameters; `aux["loss"]`, if
        there, is a scalar that joins the loss.
      start: `(params, spec) -> cache` for what belongs to a session (a KV cache).
      reads: names of stages of the same model whose parameters this one reads too
        (tied weights). They arrive as `apply(..., tied={name: params})`.
      tags: facts about the piece that transforms may ask for.

    Example:
      >>> import jax.numpy as jnp
      >>> double = Stage("double", init=lambda key, spec: ({}, {}),
      ...     apply=lambda p, s, x, *, key, train: (2 * x, s, {}))
      >>> double.apply({}, {}, 3.0, key=None, train=False)
      (6.0, {}, {})
    """

    name: str
    init: Init
    apply: Apply
    start: Callable[[Tree, Tree], Tree] | None = None
    reads: tuple[str, ...] = ()
    tags: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Repeat(Stage):
    """Equal blocks, first to first + count - 1 of the whole; see `repeat`."""

    block: Stage = dataclasses.field(kw_only=True)
    first: int = 0
    count: int = 0


@dataclasses.dataclass(frozen=True)
class Whole(Stage):
    """Stages as one that is not opened: its `apply` is more than theirs in order."""

    stages: tuple[Stage, ...] = ()


@dataclasses.dataclass(frozen=True)
class Segment(Whole):
    """Stages joined into one; see `join`."""


def output_spec(stage: Stage, params: Tree, state: Tree, spec: Tree, **extra) -> Tree:
    """Shapes and dtypes that a stage makes of an input, without computing it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> row_sum = Stage("sum", init=lambda key, spec: ({}, {}),
      ...     apply=lambda p, s, x, *, key, train: (x.sum(-1), s, {}))
      >>> output_spec(row_sum, {}, {}, jax.ShapeDtypeStruct((2, 3), jnp.float32)).shape
      (2,)
    """

    def run(params, state, x):
        return stage.apply(params, state, x, key=None, train=False, **extra)[0]

    return jax.eval_shape(run, params, state, spec)


def ties(stage: Stage, params: Tree) -> dict[str, Tree]:
    """What `apply` takes besides of a stage that reads others' parameters.

    That is `{"tied": {name: params}}`; nothing for a stage that reads its own alone.

    Example:
      >>> back = Stage("back", init=lambda key, spec: ({}, {}), reads=("embed",),
      ...     apply=lambda p, s, x, *, key, train, tied: (x * tied["embed"], s, {}))
      >>> back.apply({}, {}, 2, key=None, train=False, **ties(back, {"embed": 3}))[0]
      6
    """
    if not stage.reads:
        return {}
    return {"tied": {other: params[other] for other in stage.reads}}


def substitute(stages: Sequence[Stage], *others: Stage) -> tuple[Stage, ...]:
    """A model with some stages in the place of those of the same names.

    Args:
      stages: the model's.
      *others: what comes in, as blocks with experts (`models.moe`).

    Raises:
      ValueError: for one whose name no stage has.

    Example:
      >>> stage = lambda name, n: Stage(name, init=lambda key, spec: ({}, {}),
      ...     apply=lambda p, s, x, *, key, train: (x + n, s, {}))
      >>> made = substitute([stage("a", 1), stage("b", 1)], stage("b", 5))
      >>> made[1].apply({}, {}, 0, key=None, train=False)[0]
      5
    """
    found, names = {other.name: other for other in others}, [s.name for s in stages]
    for name in found:
        if name not in names:
            raise ValueError(f"no stage {name!r} to replace: {nearest(name, names)}")
    return tuple(found.get(stage.name, stage) for stage in stages)


def merge_aux(total: dict, aux: dict, name: str) -> dict:
    """Adds a stage's `aux` to the model's: losses add up, the rest goes by stage name.

    Example:
      >>> merge_aux({"loss": 1.0}, {"loss": 2.0, "load": 3}, "moe")
      {'loss': 3.0, 'moe': {'load': 3}}
    """
    total = dict(total)
    rest = {k: v for k, v in aux.items() if k != "loss"}
    if "loss" in aux:
        total["loss"] = total["loss"] + aux["loss"] if "loss" in total else aux["loss"]
    if rest:
        total[name] = rest
    return total


def join(stages: Sequence[Stage], name: str = "model") -> Segment:
    """Joins stages into one whose parameters are a dict by stage name.

    Args:
      stages: any number of stages, in order; segments among them are opened, so that
        `join` is associative. None at all gives the identity.
      name: the name of the whole. It folds into no key: a stage draws the same numbers
        however the model is joined.

    Raises:
      ValueError: when two stages have one name, or a tie reaches outside.

    Example:
      >>> import jax.numpy as jnp
      >>> add = lambda name, n: Stage(name, init=lambda key, spec: ({}, {}),
      ...     apply=lambda p, s, x, *, key, train: (x + n, s, {}))
      >>> both = join([add("one", 1), add("two", 2)])
      >>> both.apply({"one": {}, "two": {}}, {"one": {}, "two": {}}, 0, key=None,
      ...     train=False)[0]
      3
    """
    flat: list[Stage] = []
    for stage in stages:
        flat.extend(stage.stages if isinstance(stage, Segment) else [stage])
    names = [stage.name for stage in flat]
    if twice := {n for n in names if names.count(n) > 1}:
        raise ValueError(f"stage names must be unique; {sorted(twice)} occur twice")
    for stage in flat:
        for other in stage.reads:
            if other not in names:
                raise ValueError(
                    f"stage {stage.name!r} reads the parameters of {other!r}, which "
                    f"is not in segment {name!r} ({', '.join(names)}). A tied leaf "
                    "has one owner: move the cut, or untie the two."
                )

    def init(key, spec):
        params, state = {}, {}
        for stage in flat:
            made = stage.init(fold(key, stage.name), spec)
            params[stage.name], state[stage.name] = made
            spec = output_spec(stage, *made, spec, **ties(stage, params))
        return params, state

    def apply(params, state, x, *, key, train):
        new_state, aux = {}, {}
        for stage in flat:
            x, new_state[stage.name], own = stage.apply(
                params[stage.name],
                state[stage.name],
                x,
                key=fold(key, stage.name),
                train=train,
                **ties(stage, params),
            )
            aux = merge_aux(aux, own, stage.name)
        return x, new_state, aux

    return Segment(name, init, apply, stages=tuple(flat))


def repeat(block: Stage, count: int, *, first: int = 0) -> Repeat:
    """Stacks equal blocks: leaves get a leading axis `count`, the run is a scan.

    The stack may be cut between two blocks at "NAME/i" (after block i); both parts then
    hold their own rows of the leaves. Block i folds the key with its number in the
    whole, so a cut changes no random number.

    Args:
      block: a stage whose output has the spec of its input, without `reads`.
      count: how many blocks, at least 1.
      first: the number of the first one (a part of a cut stack starts later).

    Raises:
      ValueError: for count < 1 or a block that reads other stages.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> scale = Stage("scale", init=lambda key, spec: ({"k": jnp.float32(2)}, {}),
      ...     apply=lambda p, s, x, *, key, train: (x * p["k"], s, {}))
      >>> stack = repeat(scale, 3)
      >>> p, s = stack.init(jax.random.key(0), jax.ShapeDtypeStruct((), jnp.float32))
      >>> float(stack.apply(p, s, jnp.float32(1), key=None, train=False)[0])
      8.0
    """
    if count < 1:
        raise ValueError(f"repeat({block.name!r}) needs a count of 1 or more: {count}")
    if block.reads:
        raise ValueError(f"a repeated block cannot be tied: {block.name!r}")

    def init(key, spec):
        made = [block.init(fold(key, first + i), spec) for i in range(count)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)

    def apply(params, state, x, *, key, train):
        def one(x, row):
            params, state, number = row
            y, state, aux = block.apply(
                params, state, x, key=fold(key, number), train=train
            )
            return y, (state, aux)

        numbers = jnp.arange(first, first + count)
        x, (state, aux) = jax.lax.scan(one, x, (params, state, numbers))
        if "loss" in aux:
            aux = {**aux, "loss": aux["loss"].sum()}
        return x, state, aux

    return Repeat(
        block.name,
        init,
        apply,
        tags=block.tags,
        block=block,
        first=first,
        count=count,
    )


def with_apply(stage: Stage, apply: Apply) -> Stage:
    """A stage with another `apply`, which nothing opens to find the old one.

    So of a joined or repeated stage none of `join`, `core.cut.cut` and the like sees
    the parts: the parameters lie under its name, and it runs as a whole.

    Example:
      >>> one = Stage("one", init=lambda key, spec: ({}, {}),
      ...     apply=lambda p, s, x, *, key, train: (x + 1, s, {}))
      >>> [stage.name for stage in join([with_apply(join([one]), one.apply)]).stages]
      ['model']
    """
    rest = stage.name, stage.init, apply, stage.start, stage.reads, stage.tags
    return Whole(*rest, stage.stages) if isinstance(stage, Whole) else Stage(*rest)


def with_loss(stage: Stage, loss: Callable[[Tree, Tree], jax.Array]) -> Stage:
    """Adds a local loss to a stage: a leak loss, a load balance, a helper head's.

    It is pulled with weight 1 beside the gradient that comes back over the link.

    Args:
      stage: the stage.
      loss: `(x, y) -> scalar`, of the stage's input and output.

    Example:
      >>> import jax.numpy as jnp
      >>> double = Stage("double", init=lambda key, spec: ({}, {}),
      ...     apply=lambda p, s, x, *, key, train: (2 * x, s, {}))
      >>> with_loss(double, lambda x, y: y - x).apply({}, {}, 3.0, key=None, train=True)
      (6.0, {}, {'loss': 3.0})
    """

    def apply(params, state, x, **kwargs):
        y, state, aux = stage.apply(params, state, x, **kwargs)
        return y, state, merge_aux(aux, {"loss": loss(x, y)}, stage.name)

    return with_apply(stage, apply)
