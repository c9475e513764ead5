"""Cuts a model after named stages into segments, one owner each."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from splitjax.core.stage import Repeat, Segment, Stage, Whole, join, repeat
from splitjax.core.tree import Tree, nearest


@dataclasses.dataclass(frozen=True)
class Cut:
    """A model in segments; made by `cut`.

    Attributes:
      model: the whole.
      segments: its parts, in order; a part may be empty (only the loss lies there).
      owners: who holds each part.
    """

    model: Segment
    segments: tuple[Whole, ...]
    owners: tuple[str, ...]

    def partition(self, tree: Tree) -> tuple[Tree, ...]:
        """Parts the model's parameters (or state, or gradient) by segment.

        Args:
          tree: a dict by stage name. Stacks of repeated blocks are sliced.
        """
        whole = {stage.name: stage for stage in self.model.stages}

        def rows(stage):
            if not isinstance(stage, Repeat):
                return tree[stage.name]
            stack = whole[stage.name]
            assert isinstance(stack, Repeat)
            start = stage.first - stack.first
            part = slice(start, start + stage.count)
            return jax.tree.map(lambda leaf: leaf[part], tree[stage.name])

        return tuple(
            {stage.name: rows(stage) for stage in segment.stages}
            for segment in self.segments
        )

    def merge(self, parts: Sequence[Tree]) -> Tree:
        """Joins what `partition` parted."""
        whole: dict = {}
        for part in parts:
            for name, leaves in part.items():
                if name in whole:
                    leaves = jax.tree.map(
                        lambda a, b: jnp.concatenate([a, b]), whole[name], leaves
                    )
                whole[name] = leaves
        return {stage.name: whole[stage.name] for stage in self.model.stages}


def cut(
    stages: Sequence[Stage],
    after: str | Sequence[str] = (),
    owners: Sequence[str] | None = None,
) -> Cut:
    """Cuts a model after named stages.

    Args:
      stages: the model.
      after: one place or several, in the model's order. A place is a stage's name, a
        prefix of several ("layer_2" means after the last stage "layer_2/..."), or
        "NAME/i": after block i of a repeated stage. After the very last stage leaves an
        empty segment, which holds the loss alone: the U shape.
      owners: one for each segment; by default edge and cloud in turn.

    Raises:
      ValueError: for a place that names no stage (the stages are listed), places out of
        order, a wrong number of owners, weights that are tied across two segments, or
        to a stack that is cut.

    Example:
      >>> stage = lambda name: Stage(name, init=lambda key, spec: ({}, {}),
      ...     apply=lambda p, s, x, *, key, train: (x, s, {}))
      >>> made = cut([stage("a/0"), stage("a/1"), stage("head")], after=("a", "head"))
      >>> [[s.name for s in part.stages] for part in made.segments], made.owners
      ([['a/0', 'a/1'], ['head'], []], ('edge', 'cloud', 'edge'))
    """
    model = join(stages)
    after = (after,) if isinstance(after, str) else tuple(after)
    owners = tuple(owners or ("edge", "cloud")[:2] * (len(after) // 2 + 1))
    owners = owners if len(owners) <= len(after) + 1 else owners[: len(after) + 1]
    if len(owners) != len(after) + 1:
        raise ValueError(
            f"{len(after)} cuts make {len(after) + 1} segments, but there are "
            f"{len(owners)} owners: {owners}"
        )
    rest, groups = list(model.stages), []
    for place in after:
        head, rest = _part(rest, place, model)
        groups.append(head)
    groups.append(rest)
    segments = tuple(
        join(group, name=f"segment_{index}") for index, group in enumerate(groups)
    )
    check_reads(segments, {stage.name: stage.reads for stage in model.stages})
    return Cut(model, segments, owners)


def check_reads(
    segments: Sequence[Whole], reads: Mapping[str, tuple[str, ...]]
) -> None:
    """Refuses a tie to a stack that is cut: its reader would see some of the rows.

    Args:
      segments: of the model.
      reads: by stage name, what each stage of the model reads.

    Raises:
      ValueError: see above.

    Example:
      >>> stage = Stage("a", init=lambda key, spec: ({}, {}),
      ...     apply=lambda p, s, x, *, key, train: (x, s, {}))
      >>> parts = [join([repeat(stage, 1)]), join([repeat(stage, 1, first=1)])]
      >>> check_reads(parts, {"head": ("a",)})
      Traceback (most recent call last):
      ...
      ValueError: stage 'head' reads the parameters of 'a', a stack that is cut ...
    """
    names = [stage.name for segment in segments for stage in segment.stages]
    for name, others in reads.items():
        for other in others:
            if names.count(other) > 1:
                raise ValueError(
                    f"stage {name!r} reads the parameters of {other!r}, a stack that "
                    "is cut inside, so that no segment has all of its rows: cut it at "
                    "an end, or untie the two"
                )


def joined_metrics(each: Iterable[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """The metrics of segments together: of a stack that is cut, row by row.

    Args:
      each: metrics of segments, in order. What two of them share is of such a stack,
        one entry for a block, as `Cut.merge` has its parameters.

    Example:
      >>> joined_metrics([{"a": jnp.ones(2)}, {"a": jnp.zeros(1)}])["a"].tolist()
      [1.0, 1.0, 0.0]
    """
    whole: dict[str, jax.Array] = {}
    for own in each:
        rows = {k: jnp.concatenate([whole[k], own[k]]) for k in whole.keys() & own}
        whole |= own | rows
    return whole


def _part(
    stages: list[Stage], place: str, model: Segment
) -> tuple[list[Stage], list[Stage]]:
    """Parts the stages that are left at a place."""
    names = [stage.name for stage in stages]
    if place in names:
        index = names.index(place) + 1
        return stages[:index], stages[index:]
    inside = [i for i, name in enumerate(names) if name.startswith(place + "/")]
    if inside:
        return stages[: inside[-1] + 1], stages[inside[-1] + 1 :]
    for index, stage in enumerate(stages):
        name, _, number = place.rpartition("/")
        if isinstance(stage, Repeat) and stage.name == name and number.isdigit():
            taken = int(number) + 1 - stage.first
            if not 0 < taken <= stage.count:
                break
            one = repeat(stage.block, taken, first=stage.first)
            left = stage.count - taken
            others = (
                [repeat(stage.block, left, first=stage.first + taken)] if left else []
            )
            return stages[:index] + [one], others + stages[index + 1 :]
    known = []
    for stage in model.stages:
        known.append(stage.name)
        if isinstance(stage, Repeat):
            last = stage.first + stage.count - 1
            known[-1] = f"{stage.name}/{stage.first} to {stage.name}/{last}"
    if place in [stage.name for stage in model.stages]:
        raise ValueError(f"cut after {place!r} comes before an earlier cut: {names}")
    raise ValueError(f"cut after {place!r}: no such stage; {nearest(place, known)}")
