"""A slot: what the cloud holds for one edge, and does with its messages."""

import hashlib
import pathlib
import re
import secrets
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.runtime import control, frame
from splitjax.runtime.control import Refused
from splitjax.runtime.lane import Lane, Made
from splitjax.runtime.ledger import CAME, WENT, Ledger, room
from splitjax.runtime.shapes import Shapes
from splitjax.storage.frames import Frames

NAME = re.compile(r"[0-9a-f]{32}")  # as `data.batches.name_of` makes them
Key = tuple[int, int]  # tick and hop


class Slot:
    """One edge's run, as the cloud has it: applied exactly once, and safe on disk.

    A message is (run, slot, tick, hop, digest). It is in the journal on disk before it
    is answered; one that comes again has the same answer, and is not applied again.
    Checkpoints are taken where the edge has one, so both ends can return to one state.

    Args:
      folder: the slot's.
      made: see `Made`.
      number: the slot's.
      config: what the run depends on; a folder with another config is refused.

    Raises:
      InUse, CheckpointError, JournalError: see `Ledger`.
      Refused: when a replay does not give what was answered before.
    """

    def __init__(
        self, folder: str | pathlib.Path, made: Made, *, number: int, config: dict
    ):
        self._ledger = Ledger(folder, config)
        self._kept = pathlib.Path(folder) / "frames"
        self._shapes = Shapes()
        try:
            state = made.shared, made.slot
            if self._ledger.fresh:
                facts = {"tick": 0, "run": secrets.randbits(63)}
                self._ledger.save(0, state, facts)
                # A step uses up what it is given, and `made` is the caller's.
                state = jax.tree.map(jnp.copy, state)
            else:
                state, facts = self._ledger.load(state)
            self.lane = Lane(
                made, self._shapes, number=number, run=facts["run"], folder=folder
            )
            self._take(state, facts)
            self._replay()
        except BaseException:
            self._ledger.close()
            raise

    def _restore(self) -> None:
        """Goes to the state of the checkpoint."""
        self._take(*self._ledger.load(self.lane.state))

    def _take(self, state: Any, facts: dict[str, Any]) -> None:
        """Begins at the state of the checkpoint, with nothing that came after it."""
        self.lane.put(state, facts["tick"])
        self.lane.memories.restore(facts["tick"])
        self.base: int = facts["tick"]
        self._held: dict[Key, tuple[bytes, tuple]] = {}  # came too early; opened
        self._answers: dict[Key, tuple[bytes, int | None]] = {}  # digest, place
        self._ack = (-1, b"")  # of the last step, and its tick
        self._names: dict[int, str] = {}
        self._frames = Frames(self._kept, self.lane.step)

    def _replay(self) -> None:
        """Does again what the journal has, and compares the answers."""
        waiting: tuple[Key, bytes] | None = None
        for place, kind, data in self._ledger:
            if kind == WENT and waiting is not None:
                key, answer = waiting
                if answer != data:
                    self._ledger.rewind()
                    raise Refused(
                        "replay",
                        f"tick {key[0]}, hop {key[1]} gives another answer than "
                        "before: another machine, or other libraries? The slot is back "
                        f"at tick {self.base}: start the edge anew from its checkpoint",
                    )
                self._answers[key] = self._answers[key][0], place
                waiting = None
            elif control.is_control(data) and control.read(data).kind != "kept":
                said = control.read(data)
                if said.kind == "shape":
                    self._shapes.add(said.fields["batch"], self.lane.made.check)
                else:
                    self._names[said.fields["tick"]] = said.fields["name"]
            else:
                key = _key(data)
                answer = self._apply(key, data, self._open(key, data))
                waiting = None if answer is None else (key, answer)
        if waiting is not None:
            self._answer(*waiting)

    def close(self) -> None:
        """Lets the folder go; what was answered is on disk."""
        self._ledger.close()

    def welcome(self, hello: dict[str, Any]) -> Iterator[bytes]:
        """Answers a hello: where the run stands, and the weights where they are needed.

        A new process of the edge begins at its checkpoint, so the slot goes back to its
        own, which is of the same tick.

        Raises:
          Refused: where the two have no state in common.
        """
        tick = 0 if hello["fresh"] else hello["tick"]
        anew = hello["fresh"] or hello["resumed"]
        back = anew and tick == self.base
        now = self.base if back else self.lane.tick
        if tick != now if anew else not self.base <= tick <= now:
            raise Refused(
                "stale",
                f"the edge is at tick {tick}, the cloud at {now} with a "
                f"checkpoint of {self.base}: they have no state in common. Put the "
                "right workdir back, or start in new ones on both ends",
            )
        self.announce(hello["batch"])  # if it is refused, nothing has changed
        self._held = {}  # all that is not answered is sent again
        if back and (self._answers or self._names):
            self._ledger.rewind()
            self._restore()
            self._tell_shapes()
        version = hello["version"]
        yield control.write("welcome", run=self.lane.run, tick=now, version=version)
        if hello["fresh"]:
            yield self.lane.weights()

    def announce(self, batch: bytes) -> None:
        """Learns the shapes of a batch that frames will come of."""
        if batch not in self._shapes:
            self._shapes.add(batch, self.lane.check)
            self._ledger.write(CAME, control.write("shape", batch=batch))

    def _tell_shapes(self) -> None:
        """Begins a journal: without the shapes no frame in it could be read again."""
        for batch in self._shapes:
            self._ledger.write(CAME, control.write("shape", batch=batch))

    def handle(self, data: bytes) -> Iterator[bytes]:
        """Takes a message of the edge, and gives the answers.

        Raises:
          FrameError, Refused: for a message that is not taken; nothing of it was used.
        """
        if control.is_control(data):
            kind, fields = control.read(data)
            if kind == "shape":
                self.announce(fields["batch"])
            elif kind == "durable":
                yield self._durable(**fields)
            elif kind == "name":
                self._name(data, **fields)
            elif kind == "kept":
                yield from self._train((fields["tick"], 0), data)
            else:
                raise Refused("order", f"{kind!r} is nothing that an edge says here")
            return
        header = frame.peek(data)
        run, number = self.lane.run, self.lane.number
        if (header.run, header.slot) != (run, number):
            raise Refused(
                "run",
                f"a frame of run {header.run:x}, slot {header.slot}; this is run "
                f"{run:x}, slot {number}",
            )
        if header.kind == "train":
            yield from self._train((header.tick, header.hop), data)
        elif header.kind == "predict":
            yield self.lane.predict(header, data)
        else:
            raise Refused("order", f"an edge sends no frame of kind {header.kind!r}")

    def _train(self, key: Key, data: bytes) -> Iterator[bytes]:
        tick, hop = key
        if tick < self.base:
            raise Refused("stale", f"tick {tick}: all before {self.base} is settled")
        if key in self._answers:
            known, place = self._answers[key]
            if known != _digest(data):
                raise Refused("digest", f"tick {tick}, hop {hop} was another message")
            if place is not None:
                yield self._ledger.read(place)
            if self._ack[0] == tick:
                yield self._ack[1]
            return
        end = self.lane.end
        if tick >= end or hop >= self.lane.hops(tick):
            raise Refused(
                "order",
                f"tick {tick}, hop {hop}: this step ends before tick {end}, or that "
                "tick has fewer hops",
            )
        if key not in self._held:
            self._held[key] = data, self._open(key, data)
        elif self._held[key][0] != data:
            raise Refused("digest", f"tick {tick}, hop {hop} was another message")
        while due := [key for key in sorted(self._held) if self.lane.is_due(*key)]:
            key = due[0]
            data, opened = self._held.pop(key)
            self._ledger.write(CAME, data)
            # A failed sync ends this slot: it is made anew of what is on disk.
            with self._ledger.syncing():
                answer = self._apply(key, data, opened)
            if answer is not None:
                yield self._answer(key, answer)
            if self._ack[0] == key[0]:
                yield self._ack[1]

    def _open(self, key: Key, data: bytes) -> tuple:
        """See `Lane.open`; of a message that is kept, the name is enough."""
        if control.is_control(data):
            name = control.read(data).fields["name"]
            kept = self._frames.get(name) if NAME.fullmatch(name) else None
            if kept is None:
                raise Refused("order", f"nothing is kept under the name {name!r:.50}")
            data = kept
        return self.lane.open(*key, data)

    def _apply(self, key: Key, data: bytes, opened: tuple) -> Any:
        tick, hop = key
        before = self.lane.tick
        answer = self.lane.apply(tick, hop, *opened)
        self._answers[key] = _digest(data), None
        name = self._names.pop(tick, None) if hop == 0 else None
        if name is not None and not control.is_control(data):
            with room():
                self._frames.put(name, tick // self.lane.made.micro, data)
        if self.lane.tick != before:
            said = {"metrics": self.lane.metrics, "lost": self.lane.lost}
            self._ack = tick, control.write("ack", tick=tick, **said)
        return answer

    def _answer(self, key: Key, answer: bytes) -> bytes:
        place = self._ledger.write(WENT, answer)
        self._answers[key] = self._answers[key][0], place
        return answer

    def _durable(self, *, step: int, tick: int) -> bytes:
        """The edge has its state of a tick on disk; now the cloud has its own."""
        lane = self.lane
        between = not (lane.begun or self._held)
        if (step, tick) != (lane.step, lane.tick) or not between:
            raise Refused(
                "order", f"durable at tick {tick}, but the cloud is at {lane.tick}"
            )
        if tick != self.base:
            facts = {"tick": tick, "run": lane.run}
            with room():
                lane.memories.save(tick)
            self._ledger.save(step, lane.state, facts)
            with room():
                lane.memories.settle(tick)
            lane.put(lane.state, tick)
            self._tell_shapes()
            self.base = tick
            self._answers, self._names = {}, {}
        return control.write("saved", tick=tick)

    def _name(self, data: bytes, *, tick: int, name: str) -> None:
        """The first message of a tick is to be kept under a name."""
        if not self.lane.made.algorithm.once or not NAME.fullmatch(name):
            raise Refused("order", f"nothing is kept here under the name {name!r:.50}")
        if tick >= self.lane.end:
            raise Refused("order", f"tick {tick} is of a later step: {name!r}")
        if tick < self.lane.tick or (tick, 0) in self._answers:
            return  # it was kept, or was not
        if self._names.get(tick, name) != name:
            raise Refused("digest", f"tick {tick} was given another name")
        if tick not in self._names:
            self._names[tick] = name
            self._ledger.write(CAME, data)


def _key(data: bytes) -> Key:
    if control.is_control(data):
        return control.read(data).fields["tick"], 0
    header = frame.peek(data)
    return header.tick, header.hop


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
