"""Local moves of cuts: what a simulated schedule makes better than the min-max cut."""

from collections.abc import Callable, Collection
from fractions import Fraction

Cuts = tuple[int, ...]


def refine(
    cuts: Cuts, legal: Collection[int], makespan: Callable[[Cuts], Fraction]
) -> Cuts:
    """Moves one cut at a time to a neighboring legal place while that saves time.

    The dearest stage bounds a pipeline that is full; while it fills and drains, the
    others count too, so the min-max cut is not always the quickest. Of all moves the
    best is taken, until none saves time.

    Args:
      cuts: where to start.
      legal: where it may be cut.
      makespan: of some cuts, any exact number; it raises a ValueError for those that
        do not fit.

    Example:
      >>> refine((1,), range(1, 9), lambda cuts: abs(Fraction(cuts[0]) - 5))
      (5,)

    Reference:
      Z. Lai et al., Merak, 2022, arXiv:2206.04959: moves around the critical stage.

    Differs:
      Every cut may move, not only those of the critical stage.
    """
    places = sorted(legal)
    best, time = cuts, makespan(cuts)
    while True:
        found = []
        for number in range(len(best)):
            at = places.index(best[number])
            for near in (at - 1, at + 1):
                if 0 <= near < len(places) and places[near] not in best:
                    moved = (*best[:number], places[near], *best[number + 1 :])
                    found.append(moved)
        timed = [(_or_none(makespan, moved), moved) for moved in found]
        better = [
            (new, moved) for new, moved in timed if new is not None and new < time
        ]
        if not better:
            return best
        time, best = min(better)


def _or_none(makespan: Callable[[Cuts], Fraction], cuts: Cuts) -> Fraction | None:
    try:
        return makespan(cuts)
    except ValueError:
        return None
