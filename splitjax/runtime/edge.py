"""The driver for an edge: its own half here, the cloud's over a channel."""

import pathlib
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import starmap
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.core.algorithm import Algorithm, At, add_metrics
from splitjax.core.memory import memories
from splitjax.core.tree import Tree, spec_of
from splitjax.runtime import control, frame
from splitjax.runtime.channel import Channel
from splitjax.runtime.memories import Memories, without_ids
from splitjax.runtime.meter import Meter
from splitjax.runtime.outbox import Outbox
from splitjax.runtime.overlap import overlapped
from splitjax.runtime.predictions import Predictions
from splitjax.runtime.programs import Exchange, Programs, at_tick, begin, weights_of
from splitjax.runtime.run_state import RunState
from splitjax.runtime.schema import Schema
from splitjax.storage.frames import Frames


class Edge:
    """Runs an algorithm with this process as the edge; the same face as `Local`.

    A message is kept as bytes until the cloud has answered it. When the connection is
    lost the edge dials again and sends the same bytes again; the cloud answers a
    message that it knows without applying it again. So a run ends in the same bits
    whatever happened on the way.

    Args:
      algorithm: the protocol.
      key: a typed PRNG key: the run's, which the cloud has by its config, or one of
        the edge's own, where its noise must stay secret.
      dial: opens a channel to the cloud.
      micro: ticks in a step.
      slot: this edge's.
      config: what the run depends on, as JSON types; the cloud compares it.
      facts: what the cloud must know of the data, as JSON types.
      meter: counts the messages.
      deadline_seconds: silence after which a connection is taken for dead.
      patience_seconds: how long to dial again before giving up.
      jit: False runs operation by operation, for debugging.
      examples: see `Local`, as `folder` and `mapped`.

    Example: see `experiments/edge.py`.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        key: jax.Array,
        dial: Callable[[], Channel],
        *,
        micro: int,
        slot: int = 0,
        config: dict,
        facts: dict,
        owners: Sequence[str],
        meter: Meter | None = None,
        deadline_seconds: float = 120.0,
        patience_seconds: float = 300.0,
        jit: bool = True,
        examples: int | None = None,
        folder: str | pathlib.Path | None = None,
        mapped: bool = False,
    ):
        self.memories = Memories({})
        rows = folder and pathlib.Path(folder, "rows")
        self._store = {"examples": examples, "mapped": mapped, "folder": rows}
        self.algorithm, self.key, self.slot = algorithm, key, slot
        self.kept: Frames | None = None
        self._micro, self._owners = micro, owners
        self._programs = Programs(algorithm, jit=jit)
        self._specs: tuple[Tree, Tree, Tree] = ({}, (), {})
        self._predictions = 0
        self._numbered = Predictions()
        hello = {
            "protocol": control.PROTOCOL,
            "version": control.software(),
            "lease": secrets.token_bytes(16),
            "config": config,
            "facts": facts,
        }
        self._outbox = Outbox(
            dial,
            hello,
            slot=slot,
            meter=meter or Meter(),
            deadline_seconds=deadline_seconds,
            patience_seconds=patience_seconds,
        )

    @property
    def meter(self) -> Meter:
        """What was sent and received."""
        return self._outbox.meter

    def keep(self, store: Frames) -> None:
        """From now on the cloud keeps the first message of each named batch.

        Here the store holds the names alone: which messages the cloud has.

        Raises:
          ValueError: where a first message depends on more than its batch.
        """
        if not self.algorithm.once or self.memories:
            raise ValueError(
                "messages can be kept where the first segment is frozen, and no codec "
                "remembers examples"
            )
        self.kept = store

    def start(
        self, params: tuple, state: tuple, x: Tree, *, tick: int | None = None
    ) -> RunState:
        """Connects, and gives the first state.

        Args:
          params: by segment; specs are enough, since the weights are the cloud's.
          state: likewise.
          x: the model's input, or its spec.
          tick: where a checkpoint goes on; None for a new run. The state is then for
            its structure alone.

        Raises:
          Refused: when the cloud will not; `code` says why.
          Unauthenticated: when the cloud does not know this edge.
          CredentialError: when this edge does not trust the cloud.
          ConnectionError: when it cannot be reached.
        """
        params, state, x = spec_of(params), spec_of(state), spec_of(x)
        edge, shared, slot = jax.eval_shape(self.algorithm.init, params, state, x)
        self._specs = edge, shared, slot
        self.memories = Memories(edge, **self._store)
        self.memories.restore(tick or 0)
        batch = Schema.of({"x": x}).to_bytes()
        self._outbox.open(batch, tick=tick or 0, fresh=tick is None)
        if tick is not None:
            self._outbox.durable(tick // self._micro, tick)
            zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), edge)
            return RunState(zeros, (), {}, tick // self._micro, tick)
        schema = Schema.of(weights_of("edge", self._owners, params, state))
        _, weights = frame.read(schema, self._outbox.weights(), check_finite=True)
        weights = jax.tree.map(jnp.asarray, weights)
        made = begin(self.algorithm, weights, params, state, x)
        return RunState(made, (), {})

    def step(
        self,
        run: RunState,
        batches: Sequence[dict],
        *,
        in_flight: int = 1,
        names: Sequence[str] = (),
    ) -> tuple[RunState, dict]:
        """One optimizer step over micro-batches; see `Local.step`.

        Raises:
          ValueError: for another number of micro-batches than every step has.
          Refused, ConnectionError: see `start`.
        """
        if len(batches) != self._micro:
            raise ValueError(f"a step has {self._micro} micro-batches: {len(batches)}")

        def work(number, batch):
            nonlocal run
            batch = batch if memories(self._specs) else without_ids(batch)
            at = self._at(run.tick + number)
            name = names[number] if names else ""
            run, live, exchanges = self._first(run, batch, at, name)
            yield
            run, metrics = self._finish(run, batch, at, live, exchanges)
            return metrics

        total: dict = {}
        for metrics in overlapped(starmap(work, enumerate(batches)), in_flight):
            total = add_metrics(total, metrics)
        tick = run.tick + len(batches)
        metrics, lost = self._outbox.ack(tick - 1)
        total = add_metrics(metrics, total)
        self.memories.step(lost)
        return run._replace(step=run.step + 1, tick=tick), total

    def predict(self, run: RunState, x: Tree) -> Tree:
        """The model's output for an input, through the cut; nothing is learned."""
        [out] = self.predict_each(run, [x])
        return out

    def predict_each(
        self, run: RunState, inputs: Iterable[Tree], *, in_flight: int = 1
    ) -> Iterator[Tree]:
        """The outputs for some inputs, all to be taken; see `Local.predict_each`."""
        return overlapped((self._forward(run, x) for x in inputs), in_flight)

    def _forward(self, run: RunState, x: Tree) -> Generator[None, None, Tree]:
        programs = self._programs
        at = self._at(run.tick)
        at = At(at.key, at.step, at.tick, at.slot, apply=False)
        exchanges = programs.predictions(*self._specs, x, at)
        self._outbox.announce(Schema.of({"x": spec_of(x)}).to_bytes())
        self._predictions += 1
        number, at = self._predictions, self._numbered.at(at, x)
        live: Tree = {}
        down: Tree = None
        for hop, exchange in enumerate(exchanges):
            edge = programs.predict_edge(hop)
            _, live, up = edge(run.edge, live, {"x": x}, down, at)
            self._outbox.post_tree(("predict", number, hop), exchange.up, up)
            yield
            down = self._outbox.take_tree(("predict", number, hop), exchange.down)
        return programs.predict_last()(run.edge, live, {"x": x}, down, at)[1]["out"]

    def prefetch(self, ids: Any) -> None:
        """Tells which examples come next; see `Rows.prefetch`."""
        self.memories.prefetch(ids)

    @property
    def remembers(self) -> bool:
        """Whether a codec remembers examples."""
        return bool(self.memories)

    @property
    def state_bytes(self) -> int:
        """Bytes of what this end remembers of all examples."""
        return self.memories.nbytes

    def saving(self, run: RunState) -> None:
        """Tells that a checkpoint of this state is about to be taken."""
        self.memories.save(run.tick)

    def saved(self, run: RunState) -> None:
        """Tells the cloud that this state is on disk, and waits until its own is."""
        self.memories.settle(run.tick)
        self._outbox.durable(run.step, run.tick)

    def close(self) -> None:
        """Says goodbye, and ends the connection."""
        self._outbox.close()

    def _at(self, tick: int) -> At:
        return at_tick(self.key, tick, slot=self.slot, micro=self._micro)

    def _first(self, run: RunState, batch: Tree, at: At, name: str) -> tuple:
        """A tick's first message; or, of one that the cloud has, its name."""
        exchanges = self._programs.exchanges(*self._specs, batch, at)
        self._outbox.announce(Schema.of(spec_of(batch)).to_bytes())
        tick = int(at.tick)
        if name and self.kept is not None:
            if self.kept.get(name) is not None:
                said = control.write("kept", tick=tick, name=name)
                self._outbox.post(("train", tick, 0), said)
                return run, {}, exchanges
            self._outbox.say(control.write("name", tick=tick, name=name))
            self.kept.put(name, int(at.step), b"")
        if self.memories:
            like = self._programs.remembered(*self._specs, batch)[0]
            self.memories.begin(tick, batch.get("ids"), like)
        held = self.memories.lend(tick, run.edge)
        changes, live, up = self._programs.edge(0, at)(held, {}, batch, None, at)
        changes = self.memories.take(tick, changes)
        run = run._replace(edge={**run.edge, **changes})
        self._outbox.post_tree(("train", tick, 0), exchanges[0].up, up)
        return run, live, exchanges

    def _finish(
        self,
        run: RunState,
        batch: Tree,
        at: At,
        live: Tree,
        exchanges: tuple[Exchange, ...],
    ) -> tuple[RunState, dict]:
        """Takes a tick from its first message to its end."""
        down: Tree = None
        tick, rows = int(at.tick), self.memories
        for hop, exchange in enumerate(exchanges):
            if hop:
                edge = self._programs.edge(hop, at)
                held = rows.lend(tick, run.edge)
                changes, live, up = edge(held, live, batch, down, at)
                changes = rows.take(tick, changes)
                run = run._replace(edge={**run.edge, **changes})
                self._outbox.post_tree(("train", tick, hop), exchange.up, up)
            down = None
            if exchange.down is not None:
                down = self._outbox.take_tree(("train", tick, hop), exchange.down)
        last, metrics = self._programs.last(at), live.get("metrics", {})
        if last is not None:
            held = rows.lend(tick, run.edge)
            changes, metrics = last(held, live, batch, down, at)
            run = run._replace(edge={**run.edge, **rows.take(tick, changes)})
        rows.end(tick, told=False)
        return run, metrics
