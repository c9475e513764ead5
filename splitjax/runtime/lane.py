"""A lane: the cloud's half of one edge's run, in memory."""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from splitjax.core.algorithm import Algorithm, At, add_metrics, without_zero_counts
from splitjax.core.memory import ids_of
from splitjax.core.tree import Tree
from splitjax.runtime import frame
from splitjax.runtime.control import Refused
from splitjax.runtime.memories import Memories
from splitjax.runtime.programs import Exchange, Programs, at_tick
from splitjax.runtime.schema import FrameError, Schema, WrongSchema
from splitjax.runtime.shapes import Shapes

# Told of in one step; who is not told of is found lost at the next visit, too.
MOST_LOST = 1024


class Made(NamedTuple):
    """What a cloud builds for a slot.

    Attributes:
      algorithm: the protocol.
      key: the run's typed PRNG key.
      micro: ticks in a step.
      weights: what the edge starts from; see `programs.weights_of`.
      edge: specs of all that the edge holds.
      shared: what the cloud holds once, at first.
      slot: what the cloud holds for the edge, at first.
      check: `(batch specs) -> None` raises a `WrongSchema` for shapes that no edge of
        this run has any business to send.
      check_labels: `(target) -> None` raises a ValueError for labels that it has not.
      examples: how many there are, for codecs that remember them; None: any number.
      mapped: see `storage.rows`.
    """

    algorithm: Algorithm
    key: jax.Array
    micro: int
    weights: Tree
    edge: Tree
    shared: Tree
    slot: Tree
    check: Callable[[Tree], None]
    check_labels: Callable[[Tree], None]
    examples: int | None = None
    mapped: bool = False


class Lane:
    """Runs the cloud's functions on the messages of one edge.

    Args:
      made: see `Made`.
      shapes: those that the edge has announced.
      number: the slot's.
      run: the run's number, for the frames.
      folder: of the slot.

    Example: see `splitjax.runtime.slot`.
    """

    def __init__(
        self,
        made: Made,
        shapes: Shapes,
        *,
        number: int,
        run: int,
        folder: str | pathlib.Path,
    ):
        self.memories = Memories(
            made.slot,
            examples=made.examples,
            folder=pathlib.Path(folder, "rows"),
            mapped=made.mapped,
        )
        self.made, self.shapes, self.number, self.run = made, shapes, number, run
        self._programs = Programs(made.algorithm)
        self.put((made.shared, made.slot), 0)

    @property
    def state(self) -> tuple[Tree, Tree]:
        """What the cloud holds: shared, and for the edge."""
        return self._shared, self._slot

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.tick // self.made.micro

    @property
    def end(self) -> int:
        """The tick at which the step under way ends."""
        return (self.step + 1) * self.made.micro

    @property
    def begun(self) -> bool:
        """Whether anything of the step under way is done."""
        return bool(self._done)

    def put(self, state: tuple[Tree, Tree], tick: int) -> None:
        """Takes a state for its own, at the beginning of a step."""
        self._shared, self._slot = state
        self.tick = tick  # the first of the step under way
        self._done: dict[int, int] = {}  # hops of the ticks of this step
        self._live: dict[int, tuple[Tree, dict]] = {}  # by tick
        self._total: dict = {}
        self._lost: list[int] = []
        self.memories.step()
        self.metrics: dict[str, float] = {}  # of the last step
        self.lost: list[int] = []  # examples that the edge must send whole again

    def hops(self, tick: int) -> int:
        """How many hops a tick has."""
        return len(self._programs.hops(self._at(tick)))

    def check(self, batch: Tree) -> None:
        """Raises a `WrongSchema` for specs that no message can follow from.

        They are traced here, once and for all: what fails is not announced, and no
        frame that comes later pays for it.
        """
        programs, micro = self._programs, self.made.micro
        try:
            self.made.check(batch)
            if "target" in batch:
                for tick in (micro - 1, 0):
                    programs.exchanges(*self._specs, batch, self._at(tick))
            elif self.made.algorithm.predict is not None:
                programs.predictions(*self._specs, batch["x"], self._at(0))
        except FrameError:
            raise
        except Exception as error:
            # Whatever the model makes of shapes that no edge should have.
            text = str(error)[:200]
            raise WrongSchema(f"no tick has these shapes: {text}") from error

    def is_due(self, tick: int, hop: int) -> bool:
        """Each hop takes the ticks in order, and a tick its hops."""

        def reached(other):
            return self._done.get(other, 0) >= min(hop + 1, self.hops(other))

        mine = self._done.get(tick, 0) == hop
        return mine and all(reached(other) for other in range(self.tick, tick))

    def open(self, tick: int, hop: int, data: bytes) -> tuple[Tree, Exchange, Tree]:
        """The message of a frame, what its hop exchanges, and specs of the slot.

        Nothing is changed.

        Raises:
          FrameError: for a frame that is not what it must be.
          Refused: for ids or labels of examples that cannot be.
        """
        at = self._at(tick)

        def found(batch):
            return self._programs.exchanges(*self._specs, batch, at)[hop]

        exchange, batch = self._matching(found, self.shapes.train(), data)
        message = frame.read(exchange.up, data, check_finite=True)[1]
        if "target" in message:
            try:
                self.made.check_labels(message["target"])
            except ValueError as error:
                raise Refused("labels", str(error)) from error
        like = self._programs.remembered(*self._specs, batch)[1]
        if hop == 0 and self.memories:
            try:
                self.memories.check(tick, ids_of(message), like)
            except ValueError as error:
                raise Refused("ids", str(error)) from error
        return message, exchange, like

    def apply(
        self, tick: int, hop: int, message: Tree, exchange: Exchange, like: Tree
    ) -> bytes | None:
        """Runs a hop on what `open` gave; returns the frame that goes down, if any.

        When a step is done, `tick` moves to its end, and `metrics` are those of it.
        """
        at, rows = self._at(tick), self.memories
        live, metrics = self._live.pop(tick, ({}, {}))
        if hop == 0 and rows:
            rows.begin(tick, ids_of(message), like)
        program, slot = self._programs.cloud(hop, at), rows.lend(tick, self._slot)
        self._shared, (changes,), (live,), (out,), new = program(
            self._shared, (slot,), (live,), (message,), (at,)
        )
        changes = rows.take(tick, changes)
        self._slot = {**self._slot, **changes}
        self._done[tick] = hop + 1
        metrics = add_metrics(metrics, new)
        down = None
        if exchange.down is not None:
            down = self.frame(exchange.down, jax.device_get(out), "train", tick, hop)
        if hop < self.hops(tick) - 1:
            self._live[tick] = live, metrics
            return down
        self._total = add_metrics(self._total, metrics)
        self._lost += rows.end(tick)
        if at.apply:
            self.lost, self._lost = self._lost[:MOST_LOST], []
            rows.step()
            found = {name: float(v) for name, v in self._total.items()}
            self.metrics = without_zero_counts(found)
            self._total, self._done, self.tick = {}, {}, tick + 1
        return down

    def predict(self, header: frame.Header, data: bytes) -> bytes:
        """The answer to a frame of a forward pass; nothing is learned."""
        hops = self._programs.predict_hops() if self.made.algorithm.predict else 0
        if header.hop >= hops:
            raise Refused("order", f"hop {header.hop} of a forward pass of {hops}")
        at = self._at(self.tick)
        at = At(at.key, at.step, at.tick, at.slot, apply=False)

        def found(x):
            return self._programs.predictions(*self._specs, x, at)[header.hop]

        exchange, _ = self._matching(found, self.shapes.predict(), data)
        message = frame.read(exchange.up, data, check_finite=True)[1]
        program = self._programs.predict_cloud(header.hop)
        lanes = (self._slot,), ({},), (message,), (at,)
        out = jax.device_get(program(self._shared, *lanes)[3][0])
        return self.frame(exchange.down, out, "predict", header.tick, header.hop)

    def weights(self) -> bytes:
        """The frame of what the edge starts from."""
        weights = jax.device_get(self.made.weights)
        return self.frame(Schema.of(weights), weights, "weights", 0, 0)

    def frame(
        self, schema: Schema, tree: Tree, kind: str, tick: int, hop: int
    ) -> bytes:
        """Writes a frame of this run and slot."""
        where = {"run": self.run, "slot": self.number, "tick": tick, "hop": hop}
        return frame.write(schema, tree, kind=kind, **where)

    def _matching(self, found: Callable, shapes: Iterable, data: bytes) -> Any:
        """A frame's exchange, of those that announced shapes have, and its shape."""
        schema = frame.peek(data).schema
        for shape in shapes:
            exchange = found(shape)
            if exchange.up is not None and exchange.up.hash == schema:
                return exchange, shape
        raise WrongSchema(
            f"a frame of schema {schema.hex()}, which follows from none of the "
            f"{len(self.shapes)} shapes that were announced: do both ends run one "
            "config?"
        )

    def _at(self, tick: int) -> At:
        return at_tick(self.made.key, tick, slot=self.number, micro=self.made.micro)

    @property
    def _specs(self) -> tuple[Tree, Tree, Tree]:
        return self.made.edge, self._shared, self._slot
