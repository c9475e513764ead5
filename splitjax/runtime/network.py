"""A slow network between two processes of one machine, by due time."""

import dataclasses
import math
import re
import struct
import threading
import time
from typing import Protocol

from splitjax.runtime.channel import Channel, Closed
from splitjax.runtime.schema import FrameError

STAMP = struct.Struct("<d")  # due time in seconds
MAX_AHEAD_SECONDS = 3600.0
SPIN_SECONDS = 0.0004  # a sleep may end that much too late
SLICE_SECONDS = 0.1  # how long a closed channel may go unnoticed
BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class WrongStamp(FrameError):
    """A message without a due time that can be true."""


@dataclasses.dataclass(frozen=True)
class Network:
    """How fast one direction of a link is.

    Attributes:
      bits_per_second: its rate; may be infinite.
      delay_seconds: from the last bit's leaving to its arrival.
      overhead_bytes: what the transport adds to each message.

    Raises:
      ValueError: for a rate that is not positive, or another number below 0.

    Example:
      >>> network = Network.parse("10Mbit,20ms")
      >>> network
      Network(bits_per_second=10000000.0, delay_seconds=0.02, overhead_bytes=0)
      >>> network.busy_seconds(125_000)
      0.1
      >>> str(network)
      '10Mbit,20ms'
    """

    bits_per_second: float
    delay_seconds: float = 0.0
    overhead_bytes: int = 0

    def __post_init__(self):
        if not self.bits_per_second > 0:
            raise ValueError(f"bits_per_second={self.bits_per_second}: expected > 0")
        if not 0 <= self.delay_seconds < math.inf or not self.overhead_bytes >= 0:
            raise ValueError(f"{self!r}: delay and overhead are finite and at least 0")

    def __str__(self) -> str:
        for unit in ("Gbit", "Mbit", "kbit", "bit"):
            rate = self.bits_per_second / BITS[unit.lower()]
            if rate >= 1:
                break
        return f"{rate:.10g}{unit},{self.delay_seconds / SECONDS['ms']:.10g}ms"

    @classmethod
    def parse(cls, text: str, *, overhead_bytes: int = 0) -> "Network":
        """Reads a rate in bits and a delay: "10Mbit,20ms", "1.5 Gbit/s, 5 ms".

        Args:
          text: the rate in bit, kbit, Mbit or Gbit, a comma, the delay in us, ms or s.
          overhead_bytes: see `Network`.

        Raises:
          ValueError: for another text.

        Example: see `Network`.
        """
        number = r"\s*(\d+\.?\d*|\.\d+)\s*"
        found = re.fullmatch(
            rf"{number}([kMG]?bit)(?:/s)?\s*,{number}(us|ms|s)\s*", text, re.I
        )
        if not found:
            raise ValueError(
                f"network {text!r}: expected a rate in bit, kbit, Mbit or Gbit and a "
                "delay in us, ms or s, such as '10Mbit,20ms'"
            )
        rate, unit, delay, time_unit = found.groups()
        return cls(
            float(rate) * BITS[unit.lower()],
            float(delay) * SECONDS[time_unit.lower()],
            overhead_bytes,
        )

    def busy_seconds(self, size_bytes: int) -> float:
        """How long one message keeps the link busy; the delay comes after that."""
        return 8 * (size_bytes + self.overhead_bytes) / self.bits_per_second


MBIT_10 = Network(10e6, 0.020)
MBIT_100 = Network(100e6, 0.020)


class Clock(Protocol):
    """What tells the time and waits."""

    def now(self) -> float:
        """Seconds."""
        ...

    def wait(self, until: float) -> None:
        """Returns when it is that time, or later."""
        ...


class RealClock:
    """The machine's clock that never jumps, the same in all of its processes."""

    def now(self) -> float:
        """See `Clock.now`."""
        return time.monotonic()

    def wait(self, until: float) -> None:
        """Sleeps, and for the last 0.4 ms asks for the time again and again."""
        while (left := until - time.monotonic()) > 0:
            # A sleep of 0 lets other threads run.
            time.sleep(max(0.0, left - SPIN_SECONDS))


class VirtualClock:
    """A clock for tests: who waits moves it on, and no time passes.

    Example:
      >>> clock = VirtualClock()
      >>> clock.wait(until=2.5)
      >>> clock.now()
      2.5
    """

    def __init__(self, start_seconds: float = 0.0):
        self._lock = threading.Lock()
        self._now = start_seconds

    def now(self) -> float:
        """See `Clock.now`."""
        return self._now

    def wait(self, until: float) -> None:
        """See `Clock.wait`."""
        with self._lock:
            self._now = max(self._now, until)


class Slow:
    """One end of a channel whose messages come as late as a slow network brings them.

    Each end stamps what it sends with the time at which the last bit would arrive:

      due = max(free, now) + 8 (n + overhead) / rate + delay
      free = due - delay

    and holds back what it receives until then. Each direction has a sender, hence its
    own `free`: the link is full duplex. The bytes themselves travel at once, so what
    the transport takes counts only where it is longer.

    Wrap both ends of the channel, on one machine: a stamp is in seconds of its clock
    CLOCK_MONOTONIC, one for all of its processes. Two machines share no such clock;
    they have a real network.

    One thread may send while another receives.

    Args:
      channel: to wrap.
      network: of what this end sends; see `Network`.
      clock: the machine's by default.

    Example:
      >>> from splitjax.runtime.channel import pipe
      >>> clock = VirtualClock()
      >>> edge, cloud = (Slow(end, MBIT_10, clock=clock) for end in pipe())
      >>> edge.send(bytes(125_000))
      >>> len(cloud.receive()), round(clock.now(), 6)
      (125000, 0.12)
    """

    def __init__(
        self, channel: Channel, network: Network, *, clock: Clock | None = None
    ):
        self.channel = channel
        self.network = network
        self.clock = clock or RealClock()
        self._sending, self._receiving = threading.Lock(), threading.Lock()
        self._free = -math.inf
        self._held: tuple[float, bytes] | None = None
        self._over = False

    def send(self, message: bytes) -> None:
        """Sends a message with its due time; errors as `Channel.send`.

        Raises:
          ValueError: when it would be due more than an hour from now.
        """
        with self._sending:
            now = self.clock.now()
            free = max(self._free, now) + self.network.busy_seconds(len(message))
            due = free + self.network.delay_seconds
            if due - now > MAX_AHEAD_SECONDS:
                raise ValueError(
                    f"a message of {len(message)} bytes would arrive after "
                    f"{due - now:.0f} s over {self.network}; at most "
                    f"{MAX_AHEAD_SECONDS:.0f} s"
                )
            self.channel.send(STAMP.pack(due) + message)
            self._free = free

    def receive(self, timeout: float | None = None) -> bytes:
        """The next message, when it is due; errors as `Channel.receive`.

        A message that is not due in time is kept for the next call.

        Raises:
          WrongStamp: for a message without a due time, or one that is an hour ahead.
        """
        end = math.inf if timeout is None else self.clock.now() + timeout
        with self._receiving:
            if self._held is None:
                self._held = self._read(self.channel.receive(timeout))
            due, message = self._held
            self._wait(min(due, end))
            if due > end:
                raise TimeoutError(f"no message was due within {timeout} s")
            self._held = None
            return message

    def close(self) -> None:
        """Ends the channel; see `Channel.close`."""
        self._over = True
        self.channel.close()

    def _read(self, data: bytes) -> tuple[float, bytes]:
        if len(data) < STAMP.size:
            raise WrongStamp(
                f"a message of {len(data)} bytes has no due time: is the other end's "
                "channel slow, too?"
            )
        (due,) = STAMP.unpack_from(data)
        ahead = due - self.clock.now()
        if not math.isfinite(due) or ahead > MAX_AHEAD_SECONDS:
            raise WrongStamp(
                f"a message that is due in {ahead:.6g} s; at most "
                f"{MAX_AHEAD_SECONDS:.0f} s: do both ends run on one machine?"
            )
        return due, data[STAMP.size :]

    def _wait(self, until: float) -> None:
        while not self._over and (now := self.clock.now()) < until:
            self.clock.wait(min(until, now + SLICE_SECONDS))
        if self._over:
            raise Closed("the channel was closed")
