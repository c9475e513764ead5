"""The driver for one process: both halves here, every message through a real frame."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.algorithm import Algorithm, At, add_metrics
from splitjax.core.tree import Tree, spec_of
from splitjax.runtime import frame
from splitjax.runtime.meter import Meter
from splitjax.runtime.schema import Schema
from splitjax.storage.frames import Frames


class RunState(NamedTuple):
    """Everything that a run must keep to go on.

    Attributes:
      edge: what the edge holds.
      shared: what the cloud holds once.
      slot: what the cloud holds for the edge.
      step: optimizer steps done.
      tick: micro-batches done.
    """

    edge: dict
    shared: Tree
    slot: dict
    step: int = 0
    tick: int = 0


class Local:
    """Runs an algorithm with one edge and one cloud in this process.

    Args:
      algorithm: the protocol.
      key: the run's typed PRNG key.
      meter: counts the frames; a new one by default.
      frames: False hands device arrays over instead: no bytes are counted.
      jit: False runs operation by operation, for debugging.

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
    ):
        self.kept: Frames | None = None
        self.algorithm = algorithm
        self.key = key
        self.meter = meter or Meter()
        self.frames = frames
        self._jit: Callable[..., Any] = jax.jit if jit else lambda f, **_: f
        self._compiled: dict = {}
        self._schemas: dict = {}
        self._specs: dict = {}

    def keep(self, store: Frames) -> None:
        """From now on the cloud keeps the first message of each named batch.

        One that is there is read again: the edge neither computes nor sends it.

        Raises:
          ValueError: where a first message depends on more than its batch.
        """
        if not (self.algorithm.once and self.frames):
            raise ValueError(
                "messages can be kept where the first segment is frozen and messages "
                "pass frames: here they change from step to step, or are no bytes"
            )
        self.kept = store

    def start(self, params: tuple, state: tuple, x: Tree) -> RunState:
        """The first state, from parameters and state by segment."""
        made = self.algorithm.init(params, state, x)
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
        waiting: deque = deque()
        total: dict = {}
        ticks = list(enumerate(batches))
        while ticks or waiting:
            while ticks and len(waiting) < max(1, in_flight):
                number, batch = ticks.pop(0)
                at = self._at(run, run.tick + number, number == len(batches) - 1)
                name = names[number] if names else ""
                run, live, up = self._first(run, batch, at, name)
                waiting.append((batch, at, live, up))
            run, metrics = self._finish(run, *waiting.popleft())
            total = add_metrics(total, metrics)
        return run._replace(step=run.step + 1, tick=run.tick + len(batches)), total

    def predict(self, run: RunState, x: Tree) -> Tree:
        """The model's output for an input, through the cut; nothing is learned."""
        if self.algorithm.predict is None:
            raise ValueError("this algorithm has no forward pass of its own")
        hops, last = self.algorithm.predict
        at = self._at(run, run.tick, False)
        batch, live, down = {"x": x}, {}, None
        for number, hop in enumerate(hops):
            edge = self._function(("predict edge", number), hop.edge)
            _, live, up = edge(run.edge, live, batch, down, at)
            up = self._ship(up, "predict", "up", number, at)
            cloud = self._function(("predict cloud", number), hop.cloud)
            _, _, _, (down,), _ = cloud(run.shared, (run.slot,), ({},), (up,), (at,))
            down = self._ship(down, "predict", "down", number, at)
        return self._function("predict last", last)(run.edge, live, batch, down, at)[1][
            "out"
        ]

    def _at(self, run: RunState, tick: int, apply: bool) -> At:
        numbers = (np.int32(run.step), np.int32(tick), np.int32(0))
        return At(self.key, *numbers, apply=apply)

    def _edge(self, run, number, live, batch, down, at):
        hops = self.algorithm.hops(at.apply)
        if not hops:
            return run, live, None
        edge = self._function(("edge", number, at.apply), hops[number].edge)
        changes, live, up = edge(run.edge, live, batch, down, at)
        return run._replace(edge={**run.edge, **changes}), live, up

    def _first(self, run, batch, at, name):
        """A tick's first message as it arrives: sent now, or kept from before."""
        data = self.kept.get(name) if self.kept is not None and name else None
        if data is not None:
            return run, {}, self._replay(run, batch, at, data)
        run, live, up = self._edge(run, 0, {}, batch, None, at)
        return run, live, self._ship(up, "train", "up", 0, at, keep=name)

    def _finish(self, run, batch, at, live, up):
        """Takes a tick from its first message to its end."""
        total: dict = {}
        cloud_live: dict = {}
        down = None
        for number, hop in enumerate(self.algorithm.hops(at.apply)):
            if number:
                run, live, up = self._edge(run, number, live, batch, down, at)
                up = self._ship(up, "train", "up", number, at)
            # A party's last function of a step returns all that it holds.
            done = at.apply and number == len(self.algorithm.hops(True)) - 1
            cloud = self._function(
                ("cloud", number, at.apply), hop.cloud, donate=1 if done else None
            )
            shared, (changes,), (cloud_live,), (down,), metrics = cloud(
                run.shared, (run.slot,), (cloud_live,), (up,), (at,)
            )
            run = run._replace(shared=shared, slot={**run.slot, **changes})
            total = add_metrics(total, metrics)
            down = self._ship(down, "train", "down", number, at)
        last = self.algorithm.last
        if last is not None:
            donate = 0 if at.apply else None
            last = self._function(("last", at.apply), last, donate=donate)
            changes, metrics = last(run.edge, live, batch, down, at)
            run = run._replace(edge={**run.edge, **changes})
        else:
            metrics = live.get("metrics", {})
        return run, add_metrics(total, metrics)

    def _function(self, name, function, *, donate=None):
        if name not in self._compiled:
            numbers = () if donate is None else (donate,)
            self._compiled[name] = self._jit(function, donate_argnums=numbers)
        return self._compiled[name]

    def _replay(self, run, batch, at, data):
        """The message of a kept frame; the edge's function tells its spec alone."""
        place = _place(spec_of(batch)), at.apply
        if place not in self._specs:
            edge = self.algorithm.hops(at.apply)[0].edge
            self._specs[place] = jax.eval_shape(edge, run.edge, {}, batch, None, at)[2]
        return frame.read(self._schema(self._specs[place]), data)[1]

    def _schema(self, spec):
        place = _place(spec)
        if place not in self._schemas:
            self._schemas[place] = Schema.of(spec)
        return self._schemas[place]

    def _ship(self, tree, kind, direction, hop, at, *, keep=""):
        """Sends a message through a frame, and gives what arrives."""
        if tree is None or not self.frames:
            return tree
        schema = self._schema(spec_of(tree))
        where = {"run": 0, "slot": int(at.slot), "tick": int(at.tick), "hop": hop}
        data = frame.write(schema, jax.device_get(tree), kind=kind, **where)
        self.meter.add("edge_0", direction, kind, len(data))
        if keep and self.kept is not None:
            self.kept.put(keep, int(at.step), data)
        return frame.read(schema, data)[1]


def _place(spec: Tree) -> tuple:
    leaves, treedef = jax.tree.flatten(spec)
    return treedef, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
