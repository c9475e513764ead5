"""Predictions of one tick have keys of their own."""

from splitjax.core.algorithm import At
from splitjax.core.keys import fold


class Predictions:
    """Numbers the predictions that an edge makes at a tick.

    They share the tick, and must not share their noise: the difference of two messages
    with equal noise has none. A run that goes on from a checkpoint numbers them alike.
    """

    def __init__(self):
        self._tick, self._count = -1, 0

    def at(self, at: At) -> At:
        """The place of the next prediction, as the edge alone sees it."""
        again = int(at.tick) == self._tick
        self._tick, self._count = int(at.tick), self._count + 1 if again else 1
        key = fold(at.key, "predict", self._count)
        return At(key, at.step, at.tick, at.slot, apply=at.apply)
