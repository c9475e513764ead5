"""An outbox: what an edge has said and not yet heard an answer to."""

import time
from collections.abc import Callable
from typing import Any

import jax

from splitjax.core.tree import Tree
from splitjax.runtime import control, frame
from splitjax.runtime.channel import Channel, Closed
from splitjax.runtime.control import BadControl, Refused
from splitjax.runtime.events import tell
from splitjax.runtime.meter import Meter, kind_of
from splitjax.runtime.schema import FrameError, Schema

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 5.0
PASSING = ("busy", "closing")  # refusals that time mends
Key = tuple[str, int, int]  # kind, tick and hop


class Outbox:
    """Messages to the cloud, sent again as the same bytes until they are answered.

    Args:
      dial: opens a channel.
      hello: fields of a hello that stay.
      slot: this edge's.
      meter: counts the messages.
      deadline_seconds: silence after which a channel is taken for dead.
      patience_seconds: how long to dial again before giving up.
    """

    def __init__(
        self,
        dial: Callable[[], Channel],
        hello: dict[str, Any],
        *,
        slot: int,
        meter: Meter,
        deadline_seconds: float,
        patience_seconds: float,
    ):
        self.meter, self.run = meter, 0
        self._dial, self._hello, self._slot = dial, hello, slot
        self._deadline, self._patience = deadline_seconds, patience_seconds
        self._channel: Channel | None = None
        self._waiting: dict[Key, list[bytes]] = {}  # in the order they were said
        self._answered: list[bytes] = []  # last of this step; its ack may be lost
        self._before: list[bytes] = []  # belongs before the next message
        self._arrived: dict[Key, bytes] = {}
        self._ack: tuple[int, dict[str, float], list[int]] = (-1, {}, [])  # the latest
        self._saved = -1
        self._shapes: dict[bytes, None] = {}
        self._tick = 0  # the first of the step under way

    def open(self, batch: bytes, *, tick: int, fresh: bool) -> None:
        """Connects for the first time; see `Edge.start`."""
        self._tick = tick
        self._shapes[batch] = None
        self._hello["batch"] = batch
        self._connect(fresh=fresh, resumed=not fresh)

    def weights(self) -> bytes:
        """The frame that a fresh edge is sent."""
        key = ("weights", 0, 0)
        self._waiting[key] = []
        self._until(lambda: key in self._arrived, fresh=True)
        return self._settle(key)

    def announce(self, batch: bytes) -> None:
        """Tells the shapes of a batch, before the first message that follows of it."""
        if batch not in self._shapes:
            self._shapes[batch] = None
            self._send(control.write("shape", batch=batch))

    def say(self, message: bytes) -> None:
        """A message without an answer: it goes with the next one that has one."""
        self._before.append(message)

    def post(self, key: Key, message: bytes) -> None:
        """Sends a message, and keeps it until its answer is taken."""
        self._waiting[key] = [*self._before, message]
        self._before = []
        for part in self._waiting[key]:
            self._send(part)

    def post_tree(self, key: Key, schema: Schema | None, tree: Tree) -> None:
        """Sends the frame of a message, see `post`."""
        assert schema is not None, "a hop begins with a message"
        kind, tick, hop = key
        where = {"run": self.run, "slot": self._slot, "tick": tick, "hop": hop}
        data = frame.write(schema, jax.device_get(tree), kind=kind, **where)
        self.post(key, data)

    def take_tree(self, key: Key, schema: Schema | None) -> Tree:
        """Waits for the frame that answers a message, and reads it.

        Raises:
          FrameError: when it is not what it must be.
        """
        assert schema is not None, "what is waited for has a schema"
        return frame.read(schema, self.take(key), check_finite=True)[1]

    def take(self, key: Key) -> bytes:
        """Waits for the answer to a message."""
        self._until(lambda: key in self._arrived)
        return self._settle(key)

    def ack(self, tick: int) -> tuple[dict[str, float], list[int]]:
        """Waits until a step is done that ends with a tick.

        Returns:
          Its metrics, and the examples that the cloud has forgotten.
        """
        self._until(lambda: self._ack[0] == tick)
        self._waiting = {k: v for k, v in self._waiting.items() if k[0] != "train"}
        self._arrived, self._answered = {}, []
        self._tick = tick + 1
        return self._ack[1:]

    def durable(self, step: int, tick: int) -> None:
        """Tells that a state is on disk, and waits until the cloud's is."""
        key = ("durable", tick, 0)
        self.post(key, control.write("durable", step=step, tick=tick))
        self._until(lambda: self._saved == tick)
        self._waiting.pop(key)

    def close(self) -> None:
        """Says goodbye."""
        channel, self._channel = self._channel, None
        if channel is None:
            return
        try:
            self._count(channel, control.write("bye"))
        except (OSError, ValueError):
            pass  # it is gone already
        finish = getattr(channel, "finish", None)
        channel.close() if finish is None else finish(2.0)

    def _until(self, done: Callable[[], bool], *, fresh: bool = False) -> None:
        """Listens until something is done, whatever else a cloud may say meanwhile."""
        seconds = self._deadline + self._patience
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                raise ConnectionError(
                    f"the cloud talks, and has not answered for {seconds:.0f} s"
                )
            self._hear(fresh=fresh)

    def _settle(self, key: Key) -> bytes:
        parts = self._waiting.pop(key, [])
        if key[0] == "train":
            self._answered = parts
        return self._arrived.pop(key)

    def _count(self, channel: Channel, message: bytes) -> None:
        channel.send(message)
        link = f"edge_{self._slot}"
        self.meter.add(link, "up", kind_of(message), len(message))

    def _send(self, message: bytes) -> None:
        """Sends on the channel there is; a lost one is noticed when we listen."""
        try:
            if self._channel is not None:
                self._count(self._channel, message)
        except Closed:
            pass

    def _hear(self, *, fresh: bool = False) -> None:
        """Takes one message; on a dead channel, opens another and says all again."""
        try:
            if self._channel is None:
                raise Closed("no channel")
            self._take(self._channel.receive(self._deadline))
        except (Closed, TimeoutError, FrameError) as error:
            tell("connection lost", slot=self._slot, why=str(error))
            self._drop()
            self._connect(fresh=fresh, resumed=False)
            for parts in [self._answered, *self._waiting.values()]:
                for part in parts:
                    self._send(part)

    def _take(self, data: bytes) -> None:
        self.meter.add(f"edge_{self._slot}", "down", kind_of(data), len(data))
        if not control.is_control(data):
            header = frame.peek(data)
            key = (header.kind, header.tick, header.hop)
            if (header.run, header.slot) != (self.run, self._slot):
                raise Refused(
                    "slot",
                    f"the cloud answers for slot {header.slot}, run {header.run:x}; "
                    f"this edge has slot {self._slot}, run {self.run:x}: is its token, "
                    "or its certificate, that of another edge?",
                )
            if key in self._waiting:  # else it is the second answer to one
                self._arrived[key] = data
            return
        kind, fields = control.read(data)
        if kind == "ack":
            if fields["tick"] >= self._tick:  # one at a time: more would cost memory
                self._ack = fields["tick"], fields["metrics"], fields["lost"]
        elif kind == "saved":
            self._saved = fields["tick"]
        elif kind == "refused":
            raise Refused(fields["code"], fields["text"])
        else:
            raise BadControl(f"{kind!r} is nothing that a cloud says here")

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def _connect(self, *, fresh: bool, resumed: bool) -> None:
        """Dials until the cloud welcomes us, or patience ends."""
        start, pause = time.monotonic(), FIRST_PAUSE_SECONDS
        while True:
            try:
                self._channel = self._dial()
                self._greet(self._channel, fresh=fresh, resumed=resumed)
                return
            except (Closed, TimeoutError, FrameError, Refused) as error:
                self._drop()
                if isinstance(error, Refused) and error.code not in PASSING:
                    raise
                tried = time.monotonic() - start
                if tried + pause > self._patience:
                    raise ConnectionError(
                        f"no cloud for {tried:.0f} s: {error}. Is it running, at this "
                        "address, and reachable through the firewall?"
                    ) from error
                tell("dialing again", slot=self._slot, why=str(error), pause=pause)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            except BaseException:
                self._drop()  # it is not trusted, or we were interrupted
                raise

    def _greet(self, channel: Channel, *, fresh: bool, resumed: bool) -> None:
        hello = {**self._hello, "fresh": fresh, "resumed": resumed, "tick": self._tick}
        self._count(channel, control.write("hello", **hello))
        data = channel.receive(self._deadline)
        self.meter.add(f"edge_{self._slot}", "down", kind_of(data), len(data))
        kind, fields = control.read(data)
        if kind == "refused":
            raise Refused(fields["code"], fields["text"])
        if kind != "welcome":
            raise Refused("order", f"the cloud said {kind!r}, not 'welcome'")
        if not fresh and not resumed and fields["run"] != self.run:
            raise Refused("run", "the cloud has begun another run meanwhile")
        self.run = fields["run"]
        for batch in self._shapes:
            if batch != hello["batch"]:
                self._count(channel, control.write("shape", batch=batch))
