"""A model's blocks in as many contiguous groups as a pipeline has stages."""

import itertools
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction

from splitjax.core.tree import nearest

Fits = Callable[[int, int, int], bool]


def min_max(
    costs: Sequence[float | Fraction],
    stages: int,
    *,
    legal: Collection[int] | None = None,
    fits: Fits | None = None,
) -> tuple[int, ...]:
    """Cuts blocks into groups whose dearest one costs as little as it can.

    With B[k, i] the best for the first i blocks in k groups and C(j, i) the cost of
    blocks j to i - 1,

        B[k, i] = min over legal j < i of max(B[k - 1, j], C(j, i))

    over groups that fit; sums are exact.

    Args:
      costs: of each block; not negative.
      stages: how many groups, none of them empty.
      legal: where it may be cut: numbers of blocks before a cut; None: anywhere.
      fits: `(stage, first, end) -> bool`, whether a stage has room for the blocks from
        `first` to `end - 1`; None: always.

    Returns:
      The number of blocks before each of the `stages - 1` cuts.

    Raises:
      ValueError: when there are too few blocks or legal cuts, or nothing fits.

    Example:
      >>> min_max([1, 1, 1, 10, 1], 3)
      (3, 4)

    Reference:
      Z. Lai et al., Merak, 2022, arXiv:2206.04959, as its public code has it.

    Differs:
      A memory is heeded; its local moves are `parallel.moves`.
    """
    count = len(costs)
    if stages < 1 or any(cost < 0 for cost in costs):
        raise ValueError(
            f"min_max of {count} blocks in {stages} stages: expected one stage or more "
            "and costs of 0 or more"
        )
    places = sorted(set(range(1, count)) if legal is None else set(legal))
    if places and not 0 < places[0] <= places[-1] < count:
        raise ValueError(f"legal cuts of {count} blocks are 1 to {count - 1}: {places}")
    if stages > len(places) + 1 or not count:
        raise ValueError(
            f"{count} blocks have {len(places)} legal cuts, and {stages} stages need "
            f"{stages - 1}: use fewer stages"
        )
    before = list(
        itertools.accumulate([Fraction(cost) for cost in costs], initial=Fraction(0))
    )
    best: dict[int, tuple[Fraction, tuple[int, ...]]] = {0: (Fraction(0), ())}
    for stage in range(stages):
        ends = [count] if stage == stages - 1 else places
        better: dict[int, tuple[Fraction, tuple[int, ...]]] = {}
        for end in ends:
            found = [
                (max(worst, before[end] - before[start]), (*cuts, start))
                for start, (worst, cuts) in best.items()
                if start < end and (fits is None or fits(stage, start, end))
            ]
            if found:
                better[end] = min(found)
        best = better
    if count not in best:
        raise ValueError(
            f"no cut of {count} blocks in {stages} stages fits the memory: use more "
            "stages, more recomputation or smaller micro-batches"
        )
    return best[count][1][1:]


def even(blocks: int, stages: int) -> tuple[int, ...]:
    """Cuts into groups of equal numbers of blocks, the first ones longer by one.

    Raises:
      ValueError: for more stages than blocks.

    Example:
      >>> even(7, 3)
      (3, 5)
    """
    if not 1 <= stages <= blocks:
        raise ValueError(f"{blocks} blocks do not make {stages} stages")
    sizes = [blocks // stages + (s < blocks % stages) for s in range(stages)]
    return tuple(itertools.accumulate(sizes[:-1]))


def chosen(
    after: Sequence[str], names: Sequence[str], *, legal: Collection[int] | None = None
) -> tuple[int, ...]:
    """Cuts of one's own, by the names of the blocks before them.

    Args:
      after: the names, in order; a prefix of several ("layer_2") means the last of
        them.
      names: of the blocks.
      legal: see `min_max`.

    Raises:
      ValueError: for a name of no block, places that do not increase, a cut after the
        last block, or one that is not legal.

    Example:
      >>> chosen(["a", "b/1"], ["a/0", "a/1", "b/0", "b/1", "head"])
      (2, 4)
    """
    cuts: list[int] = []
    for place in after:
        found = [
            number
            for number, name in enumerate(names, 1)
            if name == place or name.startswith(f"{place}/")
        ]
        if not found:
            raise ValueError(f"cut after {place!r}: {nearest(place, list(names))}")
        cut = found[-1]
        if cut == len(names):
            raise ValueError(f"cut after {place!r}: nothing is left for a last stage")
        if cuts and cut <= cuts[-1]:
            raise ValueError(
                f"cuts must increase: {place!r} does not come after "
                f"{after[len(cuts) - 1]!r}"
            )
        if legal is not None and cut not in legal:
            raise ValueError(
                f"cut after {place!r}: later blocks read more than what is handed on "
                "there"
            )
        cuts.append(cut)
    return tuple(cuts)


def check_cuts(
    cuts: Sequence[int],
    count: int,
    *,
    stages: int | None = None,
    legal: Collection[int] | None = None,
) -> None:
    """Raises a ValueError for cuts that do not make stages of these blocks.

    Args:
      cuts: numbers of blocks before each cut.
      count: of the blocks.
      stages: how many there shall be; None: any number.
      legal: see `min_max`.

    Example:
      >>> check_cuts((2, 1), 4)
      Traceback (most recent call last):
      ...
      ValueError: cuts=(2, 1): numbers that increase, from 1 to 3 for these 4 blocks
    """
    made = tuple(cuts)
    rising = all(a < b for a, b in itertools.pairwise(made))
    if not rising or any(not 0 < place < count for place in made):
        raise ValueError(
            f"cuts={made}: numbers that increase, from 1 to {count - 1} for "
            f"these {count} blocks"
        )
    if stages is not None and len(made) != stages - 1:
        raise ValueError(f"cuts={made}: {stages} stages have {stages - 1} cuts")
    if legal is not None and (lost := [place for place in made if place not in legal]):
        raise ValueError(
            f"cuts={made}: at {', '.join(map(str, lost))} later blocks read more than "
            f"what is handed on; the legal ones are {sorted(legal)}"
        )


def groups(cuts: Sequence[int], count: int) -> tuple[range, ...]:
    """The blocks of each stage.

    Example:
      >>> groups((1, 3), 5)
      (range(0, 1), range(1, 3), range(3, 5))
    """
    ends = (0, *cuts, count)
    return tuple(itertools.starmap(range, itertools.pairwise(ends)))
