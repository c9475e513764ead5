"""The driver for one process: both halves here, every message through a real frame."""

import pathlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import starmap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.algorithm import Algorithm, At, add_metrics
from splitjax.core.memory import ids_of
from splitjax.core.tree import Tree, spec_of
from splitjax.runtime import frame
from splitjax.runtime.memories import Memories, without_ids
from splitjax.runtime.meter import Meter
from splitjax.runtime.overlap import overlapped
from splitjax.runtime.predictions import Predictions
from splitjax.runtime.programs import Programs, place_of
from splitjax.runtime.run_state import RunState
from splitjax.runtime.schema import Schema
from splitjax.storage.frames import Frames


class Local:
    """Runs an algorithm with one edge and one cloud in this process.

    Args:
      algorithm: the protocol.
      key: the run's typed PRNG key.
      meter: counts the frames; a new one by default.
      frames: False hands device arrays over instead: no bytes are counted.
      jit: False runs operation by operation, for debugging.
      slot: the edge's number: it folds into the run's key.
      examples: how many there are, for codecs that remember them.
      folder: where checkpoints of what codecs remember lie; None: nowhere.
      mapped: whether that is read by a memory map; see `storage.rows`.

    Example: see `splitjax.train.loop`.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        key: jax.Array,
        *,
        meter: Meter | None = None,
        frames: bool = True,
        jit: bool = True,
        slot: int = 0,
        examples: int | None = None,
        folder: str | pathlib.Path | None = None,
        mapped: bool = False,
    ):
        self.memories: tuple[Memories, ...] = ()  # of the edge, of the cloud
        self._store = {"examples": examples, "mapped": mapped}
        self._folder = folder
        self.kept: Frames | None = None
        self.algorithm = algorithm
        self.key = key
        self.meter = meter or Meter()
        self.frames = frames
        self.slot = slot
        self._programs = Programs(algorithm, jit=jit)
        self._specs: dict = {}
        self._predictions = Predictions()

    def keep(self, store: Frames) -> None:
        """From now on the cloud keeps the first message of each named batch.

        One that is there is read again: the edge neither computes nor sends it.

        Raises:
          ValueError: where a first message depends on more than its batch.
        """
        if not (self.algorithm.once and self.frames) or any(self.memories):
            raise ValueError(
                "messages can be kept where the first segment is frozen, no codec "
                "remembers examples and messages pass frames: here they change from "
                "step to step, or are no bytes"
            )
        self.kept = store

    def start(
        self, params: tuple, state: tuple, x: Tree, *, tick: int | None = None
    ) -> RunState:
        """The first state, from parameters and state by segment.

        Args:
          params: by segment.
          state: by segment.
          x: the model's input.
          tick: of a checkpoint to go on from, which an `Edge` must tell.
        """
        made = self.algorithm.init(params, state, x)
        self.memories = tuple(
            Memories(
                held,
                **self._store,
                folder=self._folder and pathlib.Path(self._folder, "rows", owner),
            )
            for owner, held in (("edge", made[0]), ("cloud", made[2]))
        )
        for rows in self.memories:
            rows.restore(tick or 0)
        # Copies, since a step uses up what it is given, and `params` are the caller's.
        return RunState(*jax.tree.map(jnp.copy, made))

    def step(
        self,
        run: RunState,
        batches: Sequence[dict],
        *,
        in_flight: int = 1,
        names: Sequence[str] = (),
    ) -> tuple[RunState, dict]:
        """One optimizer step over micro-batches.

        Args:
          run: the state before. It is used up: its arrays are given to the new one.
          batches: the step's micro-batches.
          in_flight: how many of them may be under way at once. The numbers do not
            depend on it.
          names: of the micro-batches, for `kept`: equal ones have equal batches.

        Returns:
          The new state, and metrics on the device: "loss" is that of the whole step.
        """

        def work(number, batch):
            nonlocal run
            batch = self._named(batch)
            at = self._at(run, run.tick + number, number == len(batches) - 1)
            name = names[number] if names else ""
            run, live, up = self._first(run, batch, at, name)
            yield
            run, metrics = self._finish(run, batch, at, live, up)
            return metrics

        total: dict = {}
        for metrics in overlapped(starmap(work, enumerate(batches)), in_flight):
            total = add_metrics(total, metrics)
        for rows in self.memories:
            rows.step()
        return run._replace(step=run.step + 1, tick=run.tick + len(batches)), total

    def predict(self, run: RunState, x: Tree) -> Tree:
        """The model's output for an input, through the cut; nothing is learned."""
        [out] = self.predict_each(run, [x])
        return out

    def predict_each(
        self, run: RunState, inputs: Iterable[Tree], *, in_flight: int = 1
    ) -> Iterator[Tree]:
        """The outputs for some inputs, one after the other; see `predict`.

        Args:
          run: the state.
          inputs: of the model.
          in_flight: how many of them may be under way at once. The numbers do not
            depend on it.
        """
        return overlapped((self._forward(run, x) for x in inputs), in_flight)

    def _forward(self, run: RunState, x: Tree) -> Generator[None, None, Tree]:
        programs = self._programs
        at = self._at(run, run.tick, False)
        mine = self._predictions.at(at, x)
        batch, live, down = {"x": x}, {}, None
        for number in range(programs.predict_hops()):
            edge = programs.predict_edge(number)
            _, live, up = edge(run.edge, live, batch, down, mine)
            up = self._ship(up, "predict", "up", number, at)
            cloud = programs.predict_cloud(number)
            _, _, _, (down,), _ = cloud(run.shared, (run.slot,), ({},), (up,), (at,))
            yield
            down = self._ship(down, "predict", "down", number, at)
        return programs.predict_last()(run.edge, live, batch, down, mine)[1]["out"]

    def prefetch(self, ids: Any) -> None:
        """Tells which examples come next; see `Rows.prefetch`."""
        for rows in self.memories:
            rows.prefetch(ids)

    def saving(self, run: RunState) -> None:
        """Tells that a checkpoint of this state is about to be taken."""
        for rows in self.memories:
            rows.save(run.tick)

    def saved(self, run: RunState) -> None:
        """Tells that a state is on disk."""
        for rows in self.memories:
            rows.settle(run.tick)

    @property
    def remembers(self) -> bool:
        """Whether a codec remembers examples."""
        return any(self.memories)

    @property
    def state_bytes(self) -> int:
        """Bytes of what one end remembers of all examples, the larger one's."""
        return max((rows.nbytes for rows in self.memories), default=0)

    def close(self) -> None:
        """Ends the run; here there is nothing to end."""

    def _at(self, run: RunState, tick: int, apply: bool) -> At:
        numbers = (np.int32(run.step), np.int32(tick), np.int32(self.slot))
        return At(self.key, *numbers, apply=apply)

    def _named(self, batch):
        """A batch as it is traced: with ids only where someone remembers examples."""
        return batch if any(self.memories) else without_ids(batch)

    def _begin(self, run, owner, ids, batch, at):
        if self.memories[owner]:
            held = run.edge, run.shared, run.slot
            like = self._programs.remembered(*held, batch)[owner]
            self.memories[owner].begin(int(at.tick), ids, like)

    def _end(self, at):
        """A tick is over: rows are put back, and who lost some tells the other."""
        both = self.memories
        lost = [rows.end(int(at.tick)) for rows in both]
        for rows, theirs in zip(both, lost[::-1], strict=True):
            rows.forget(theirs)

    def _edge(self, run, number, live, batch, down, at):
        if not self._programs.hops(at):
            return run, live, None
        edge, rows = self._programs.edge(number, at), self.memories[0]
        tick = int(at.tick)
        changes, live, up = edge(rows.lend(tick, run.edge), live, batch, down, at)
        changes = rows.take(tick, changes)
        return run._replace(edge={**run.edge, **changes}), live, up

    def _first(self, run, batch, at, name):
        """A tick's first message as it arrives: sent now, or kept from before."""
        data = self.kept.get(name) if self.kept is not None and name else None
        if data is not None:
            return run, {}, self._replay(run, batch, at, data)
        self._begin(run, 0, batch.get("ids"), batch, at)
        run, live, up = self._edge(run, 0, {}, batch, None, at)
        return run, live, self._ship(up, "train", "up", 0, at, keep=name)

    def _finish(self, run, batch, at, live, up):
        """Takes a tick from its first message to its end."""
        total: dict = {}
        cloud_live: dict = {}
        down, rows, tick = None, self.memories[1], int(at.tick)
        for number in range(len(self._programs.hops(at))):
            if number:
                run, live, up = self._edge(run, number, live, batch, down, at)
                up = self._ship(up, "train", "up", number, at)
            else:
                self._begin(run, 1, ids_of(up), batch, at)
            cloud = self._programs.cloud(number, at)
            slot = rows.lend(tick, run.slot)
            shared, (changes,), (cloud_live,), (down,), metrics = cloud(
                run.shared, (slot,), (cloud_live,), (up,), (at,)
            )
            changes = rows.take(tick, changes)
            run = run._replace(shared=shared, slot={**run.slot, **changes})
            total = add_metrics(total, metrics)
            down = self._ship(down, "train", "down", number, at)
        last = self._programs.last(at)
        if last is not None:
            held = self.memories[0].lend(tick, run.edge)
            changes, metrics = last(held, live, batch, down, at)
            changes = self.memories[0].take(tick, changes)
            run = run._replace(edge={**run.edge, **changes})
        else:
            metrics = live.get("metrics", {})
        self._end(at)
        return run, add_metrics(total, metrics)

    def _replay(self, run, batch, at, data):
        """The message of a kept frame; the edge's function tells its spec alone."""
        place = place_of(spec_of(batch)), at.apply
        if place not in self._specs:
            edge = self.algorithm.hops(at.apply)[0].edge
            spec = jax.eval_shape(edge, run.edge, {}, batch, None, at)[2]
            self._specs[place] = Schema.of(spec)
        return frame.read(self._specs[place], data)[1]

    def _ship(self, tree, kind, direction, hop, at, *, keep=""):
        """Sends a message through a frame, and gives what arrives."""
        schema = self._programs.schema(tree) if self.frames else None
        if schema is None:
            return tree
        where = {"run": 0, "slot": int(at.slot), "tick": int(at.tick), "hop": hop}
        data = frame.write(schema, jax.device_get(tree), kind=kind, **where)
        self.meter.add(f"edge_{self.slot}", direction, kind, len(data))
        if keep and self.kept is not None:
            self.kept.put(keep, int(at.step), data)
        return frame.read(schema, data)[1]
