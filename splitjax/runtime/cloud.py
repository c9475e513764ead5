"""The cloud: serves several edges at once, each in a slot of its own."""

import dataclasses
import logging
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from splitjax.runtime import control
from splitjax.runtime.channel import Channel, Closed
from splitjax.runtime.control import PROTOCOL, Refused
from splitjax.runtime.events import tell
from splitjax.runtime.lane import Made
from splitjax.runtime.meter import Meter, kind_of
from splitjax.runtime.schema import FrameError
from splitjax.runtime.slot import Slot
from splitjax.storage.checkpoint import CheckpointError
from splitjax.storage.journal import JournalError
from splitjax.storage.lock import InUse
from splitjax.storage.row_file import RowError


class Plan(NamedTuple):
    """What a cloud will run in a slot.

    Attributes:
      name: of the run; it names its folder.
      config: what the run depends on, as JSON types.
      make: builds it; called when the slot is not in memory.
    """

    name: str
    config: dict
    make: Callable[[], Made]


# Sessions of one slot that may wait at once: one that works, one that takes over.
CALLERS = 3

# `(slot, fields of the hello)`, as the edge gives them.
Build = Callable[[int, dict], Plan]


@dataclasses.dataclass
class Status:
    """How a slot stands, for those who watch.

    Attributes:
      slot: its number.
      phase: "free", "waiting" for the edge, "working", or "away" after a session.
      tick: micro-batches done.
      step: optimizer steps done.
      loss: of the last step.
      waited_seconds: for the edge, in this session.
      worked_seconds: in this session.
      refused: how many sessions ended in a refusal.
      last: what was refused last.
    """

    slot: int
    phase: str = "free"
    tick: int = 0
    step: int = 0
    loss: float = float("nan")
    waited_seconds: float = 0.0
    worked_seconds: float = 0.0
    refused: int = 0
    last: str = ""


@dataclasses.dataclass
class _Place:
    """A slot's place in the cloud."""

    status: Status
    busy: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    callers: int = 0
    lease: bytes = b""
    channel: Channel | None = None
    run: tuple[str, dict] | None = None  # name and config of the slot in memory
    slot: Slot | None = None
    timer: threading.Timer | None = None


class Cloud:
    """Slots for edges; `serve` is called in a thread for each that connects.

    A session holds its slot by a lease. The same process of an edge that comes again
    takes its slot back at once; another one is refused while the lease lasts, that is
    until the session ends or nothing was heard for `lease_seconds`.

    Args:
      build: gives a `Plan` for what an edge says of itself, or raises a `Refused`.
      folder: where the slots have their folders.
      slots: how many there are.
      lease_seconds: how long an edge may be silent; so long after a session its slot
        stays in memory, and its folder in use.
      meter: counts what comes and goes.

    Example: see `splitjax.runtime.server`.
    """

    def __init__(
        self,
        build: Build,
        folder: str | pathlib.Path,
        *,
        slots: int = 1,
        lease_seconds: float = 120.0,
        meter: Meter | None = None,
    ):
        self.meter = meter or Meter()
        self._build, self._folder = build, pathlib.Path(folder)
        self._lease_seconds = lease_seconds
        self._places = [_Place(Status(number)) for number in range(slots)]
        self._lock = threading.Lock()
        self._closing = False

    def status(self) -> list[Status]:
        """How the slots stand."""
        return [dataclasses.replace(place.status) for place in self._places]

    def serve(self, number: int, channel: Channel) -> None:
        """One session of the edge that may use a slot; returns when it is over."""
        if not 0 <= number < len(self._places):
            text = f"no slot {number} of {len(self._places)}"
            self._refuse(number, channel, Refused("slot", text))
            return channel.close()
        link = f"edge_{number}"
        caller, place = self._places[number], None
        with self._lock:
            caller.callers += 1
            many = caller.callers > CALLERS
        try:
            if many:
                raise Refused(
                    "busy", f"{CALLERS} sessions of slot {number} wait already"
                )
            hello = self._hello(channel.receive(self._lease_seconds), link)
            place = self._enter(number, hello["lease"], channel)
            self._session(place, hello, channel, link)
        except (Closed, TimeoutError) as error:
            tell("session over", slot=number, why=str(error))
        except (FrameError, Refused) as error:
            self._refuse(number, channel, error)
        except InUse:
            text = f"slot {number} is served by another cloud until its lease is over"
            self._refuse(number, channel, Refused("busy", text))
        except (CheckpointError, JournalError, RowError) as error:
            self._refuse(number, channel, Refused("storage", str(error)))
        except Exception:
            # The edge learns no more than that: the text may be about others.
            logging.exception("slot %d: the session failed", number)
            self._refuse(number, channel, Refused("failed", "the cloud's log says why"))
        finally:
            if place is not None:
                self._leave(place)
            with self._lock:
                caller.callers -= 1
            channel.close()

    def close(self) -> None:
        """Ends every session after the message it is at; the slots are on disk."""
        with self._lock:
            self._closing = True
            channels = [p.channel for p in self._places if p.channel is not None]
            for place in self._places:
                if place.timer is not None:
                    place.timer.cancel()
        for channel in channels:
            channel.close()
        for place in self._places:
            with place.busy:
                self._drop(place)

    def _hello(self, data: bytes, link: str) -> dict[str, Any]:
        self.meter.add(link, "up", "control", len(data))
        kind, fields = control.read(data)
        if kind != "hello":
            raise Refused("order", f"a session begins with 'hello', not {kind!r}")
        ours = {"protocol": PROTOCOL, "version": control.software()}
        for name, value in ours.items():
            if fields[name] != value:
                raise Refused(
                    "version",
                    f"the edge has {name} {fields[name]!r:.50}, the cloud {value!r}: "
                    "install one version of splitjax on both",
                )
        return fields

    def _enter(self, number: int, lease: bytes, channel: Channel) -> _Place:
        """Takes the slot, from the edge's own last session where that is not over."""
        place = self._places[number]
        with self._lock:
            old = place.channel if place.lease == lease else None
        if old is not None:
            old.close()
        if not place.busy.acquire(timeout=self._lease_seconds if old else 0):
            raise Refused(
                "busy",
                f"slot {number} is leased to another process of this edge: stop that, "
                f"or wait {self._lease_seconds:g} s from its last message",
            )
        with self._lock:
            if not self._closing:  # asked now: it may have waited for long
                place.lease, place.channel = lease, channel
                if place.timer is not None:
                    place.timer.cancel()
                return place
        place.busy.release()
        raise Refused("closing", "the cloud is about to stop")

    def _leave(self, place: _Place) -> None:
        with self._lock:
            place.channel = None
            place.status.phase = "away"
            if not self._closing:
                place.timer = threading.Timer(
                    self._lease_seconds, self._expire, [place]
                )
                place.timer.daemon = True
                place.timer.start()
        place.busy.release()

    def _expire(self, place: _Place) -> None:
        """Frees a slot whose edge has not come back, for another cloud to serve."""
        if place.busy.acquire(blocking=False):
            self._drop(place)
            place.status.phase = "free"
            place.busy.release()

    def _drop(self, place: _Place) -> None:
        if place.slot is not None:
            place.slot.close()
        place.slot, place.run = None, None

    def _session(self, place: _Place, hello: dict, channel: Channel, link: str) -> None:
        status = place.status
        status.waited_seconds = status.worked_seconds = 0.0
        try:
            slot = self._open(place, hello)
            self._send(channel, slot.welcome(hello), link)
            while True:
                status.phase = "waiting"
                status.tick, status.step = slot.lane.tick, slot.lane.step
                status.loss = slot.lane.metrics.get("loss", status.loss)
                start = time.monotonic()
                data = channel.receive(self._lease_seconds)
                status.phase, came = "working", time.monotonic()
                self.meter.add(link, "up", kind_of(data), len(data))
                if data == control.write("bye"):
                    return
                self._send(channel, slot.handle(data), link)
                status.waited_seconds += came - start
                status.worked_seconds += time.monotonic() - came
        except BaseException as error:
            if not _is_harmless(error):
                self._drop(place)
            raise

    def _open(self, place: _Place, hello: dict) -> Slot:
        number = place.status.slot
        plan = self._build(number, hello)
        if place.slot is None or place.run != (plan.name, plan.config):
            self._drop(place)
            folder = self._folder / f"slot_{number}" / plan.name
            made = plan.make()
            place.slot = Slot(folder, made, number=number, config=plan.config)
            place.run = plan.name, plan.config
        tell("session", slot=number, run=plan.name, tick=place.slot.lane.tick)
        return place.slot

    def _send(self, channel: Channel, messages: Any, link: str) -> None:
        for message in messages:
            self.meter.add(link, "down", kind_of(message), len(message))
            channel.send(message)

    def _refuse(self, number: int, channel: Channel, error: Exception) -> None:
        if not isinstance(error, Refused):
            error = Refused(type(error).__name__, str(error))
        code, text = error.code, error.text
        tell("refused", slot=number, code=code, text=text, level=logging.WARNING)
        if 0 <= number < len(self._places):
            status = self._places[number].status
            status.refused, status.last = status.refused + 1, f"{code}: {text}"
        message = control.write("refused", code=code, text=text)
        try:
            channel.send(message)
            self.meter.add(f"edge_{number}", "down", "control", len(message))
        except (Closed, TimeoutError):
            pass  # it is not there to hear it


def _is_harmless(error: BaseException) -> bool:
    """Whether a slot in memory is what it is on disk, after this."""
    if isinstance(error, Refused):
        return error.code not in ("full", "replay")
    return isinstance(error, (Closed, TimeoutError, FrameError))
