"""Parameters that a stage of one segment reads from another: a tied embedding."""

import dataclasses
from collections.abc import Mapping

from splitjax.core.stage import Segment, Stage, Whole, join


def untied(stage: Stage) -> Stage:
    """A stage that says of no other one that it reads its parameters.

    Example:
      >>> head = Stage("head", lambda key, spec: ({}, {}), stand_in("x").apply,
      ...     reads=("embed",))
      >>> untied(head).reads
      ()
    """
    return dataclasses.replace(stage, reads=()) if stage.reads else stage


def stand_in(name: str) -> Stage:
    """A stage that does nothing, but has another one's name and parameters.

    Where it is joined with a reader, the reader finds the parameters, and their
    gradient comes out under their name.

    Example:
      >>> stand_in("embed").apply({"w": 1}, {}, 3.0, key=None, train=True)
      (3.0, {}, {})
    """

    def apply(params, state, x, *, key, train):
        del params, key, train
        return x, state, {}

    return Stage(name, lambda key, spec: ({}, {}), apply)


def with_stand_ins(
    part: Whole, reads: Mapping[str, tuple[str, ...]]
) -> tuple[Segment, tuple[str, ...]]:
    """A segment whose stages read again, with stand-ins for those that it has not.

    Args:
      part: of stages that were `untied`.
      reads: by stage name, what each stage of the model reads.

    Returns:
      The segment, and the names of its stand-ins, which come first in it.

    Example:
      >>> part = join([stand_in("head")])
      >>> with_stand_ins(part, {"head": ("embed",)})[1]
      ('embed',)
    """
    there = {stage.name for stage in part.stages}
    own = [dataclasses.replace(s, reads=reads[s.name]) for s in part.stages]
    lent = tuple(sorted({name for stage in own for name in stage.reads} - there))
    return join([*map(stand_in, lent), *own], name=part.name), lent
