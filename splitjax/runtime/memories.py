"""The memories of examples that a party's codecs have, kept out of its state."""

import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from splitjax.core.memory import Memory, blank, fill, memories
from splitjax.storage.rows import Rows


def without_ids(batch: dict) -> dict:
    """A batch as it is where no codec remembers examples.

    Example:
      >>> without_ids({"x": 1, "ids": 2})
      {'x': 1}
    """
    return {name: part for name, part in batch.items() if name != "ids"}


class Memories:
    """Fills in a batch's memories before its tick, and takes them back when it is over.

    What a party holds is a flat dict, and between ticks every `Memory` in it is blank.
    A codec encodes or decodes once in a tick, so a memory is lent until a function has
    given it back, and no longer: the functions after it see a blank one. Rows change
    when the tick is over, all of them or none.

    Args:
      held: of the party.
      examples: how many there are; ids are below it. None: any id.
      folder: where checkpoints of the rows lie; None keeps them in memory alone.
      mapped: see `Rows`.

    Example:
      >>> like = Memory((np.zeros((1, 2), np.float32),), *np.zeros((3, 1), np.int32),
      ...     tokens=(False,))
      >>> held = blank({"link": like, "step": 3})
      >>> store = Memories(held, examples=9)
      >>> store.begin(0, np.array([7]), {"link": like})
      >>> lent = store.lend(0, held)
      >>> lent["link"].rows[0].shape, lent["step"]
      ((1, 2), 3)
      >>> lent["link"].seen[0] = True
      >>> store.take(0, lent)["link"].is_blank, store.end(0), store.nbytes
      (True, [], 8)
    """

    def __init__(
        self,
        held: dict,
        *,
        examples: int | None = None,
        folder: str | pathlib.Path | None = None,
        mapped: bool = False,
    ):
        self._rows: dict[str, list[Rows]] = {}
        for name, entry in held.items():
            for number, _ in enumerate(memories(entry)):
                own = None
                if folder is not None:
                    own = pathlib.Path(folder) / f"{name.replace('/', '_')}_{number}"
                made = Rows(examples, own, mapped=mapped and own is not None)
                self._rows.setdefault(name, []).append(made)
        self._ids: dict[int, np.ndarray] = {}  # of the ticks of the step under way
        self._lent: dict[int, dict[str, list[Memory]]] = {}
        self._done: dict[int, dict[str, list[Memory]]] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is remembered."""
        return sum(rows.nbytes for rows in self._all())

    def check(self, tick: int, ids: Any, like: dict) -> np.ndarray:
        """The ids of a tick, where they can be looked up; so they are taken by it.

        Raises:
          ValueError: for ids that are none, out of range, twice in a batch or in a
            step, or of examples with rows of another shape.
        """
        if ids is None:
            raise ValueError(
                "a codec here remembers examples, and nothing says which these are: a "
                "batch has 'ids', int32 [B], and the first link's codec sends them"
            )
        busy = {n for t, a in self._ids.items() if t != tick for n in a.tolist()}
        for name, stores in self._rows.items():
            for rows, one in zip(stores, memories(like[name]), strict=True):
                ids = rows.check(ids, busy=busy - {-1}, like=one)
        self._ids[tick] = ids
        return ids

    def begin(self, tick: int, ids: Any, like: dict) -> None:
        """Looks up what is remembered of a tick's examples.

        Args:
          tick: its number.
          ids: int `[B]`.
          like: specs of what the party holds with the memories of such a batch.

        Raises:
          ValueError: see `check`.
        """
        ids = self.check(tick, ids, like)
        self._done[tick] = {}
        self._lent[tick] = {
            name: [
                rows.gather(ids, one)
                for rows, one in zip(stores, memories(like[name]), strict=True)
            ]
            for name, stores in self._rows.items()
        }

    def lend(self, tick: int, held: dict) -> dict:
        """What a party holds, with the tick's memories that were not given back yet."""
        lent = self._lent.get(tick, {})
        return {**held, **{n: fill(held[n], given) for n, given in lent.items()}}

    def take(self, tick: int, changes: dict) -> dict:
        """What a function has changed, with its memories taken out."""
        if tick not in self._lent:
            return changes
        out = dict(changes)
        for name in changes:
            found = memories(changes[name])
            if name in self._rows and not any(m.is_blank for m in found):
                self._done[tick][name] = found
                self._lent[tick].pop(name, None)
                out[name] = blank(changes[name])
        return out

    def end(self, tick: int, *, told: bool = True) -> list[int]:
        """Puts the rows of a tick back; it is over.

        Args:
          tick: its number.
          told: whether there is a way to tell the sender what is returned.

        Returns:
          Ids of examples that a receiver here could not go on with, and has forgotten:
          the sender must forget them as well.

        Raises:
          RuntimeError: for such examples, when it cannot be told.
        """
        if tick not in self._lent:
            return []
        ids, lost = self._ids[tick], []
        for name, given in self._done.pop(tick).items():
            for rows, memory in zip(self._rows[name], given, strict=True):
                lost += rows.put(ids, memory)
        for name in self._lent.pop(tick):
            for rows in self._rows[name]:
                rows.release(ids)
        if lost and not told:
            raise RuntimeError(
                f"what was sent of examples {lost[:5]} does not fit what this end "
                "remembers of them: begin both ends anew from one checkpoint"
            )
        return sorted(set(lost))

    def step(self, lost: Iterable[int] = ()) -> None:
        """The step is over: its examples may come again, the lost ones whole."""
        self._ids = {}
        self.forget(lost)

    def forget(self, ids: Iterable[int]) -> None:
        """Drops examples, so that each is sent whole at its next visit."""
        ids = list(ids)
        for rows in self._all():
            rows.forget(ids)

    def prefetch(self, ids: Any) -> None:
        """Begins to read the rows of the batch after this one."""
        for rows in self._all():
            rows.prefetch(ids)

    def save(self, number: int) -> None:
        """Writes what is new, for a checkpoint that the caller then takes."""
        for rows in self._all():
            rows.save(number)

    def settle(self, number: int) -> None:
        """The checkpoint is taken."""
        for rows in self._all():
            rows.settle(number)

    def restore(self, number: int) -> None:
        """Goes back to a checkpoint; ticks under way are forgotten.

        Raises:
          RowError: when the folder has the rows of another one.
        """
        self._ids, self._lent, self._done = {}, {}, {}
        for rows in self._all():
            rows.restore(number)

    def _all(self) -> list[Rows]:
        return [rows for stores in self._rows.values() for rows in stores]
