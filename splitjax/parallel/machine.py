"""What a plan knows of the devices."""

import dataclasses
from fractions import Fraction


@dataclasses.dataclass(frozen=True)
class Machine:
    """The speeds and the room of equal devices.

    Attributes:
      flops_per_second: of one device.
      link_bytes_per_second: between two of them, one way.
      memory_bytes: of one; None: no bound.
      copies: how often a parameter is there: itself, its gradient, two moments.
      stream_bytes_per_second: that a device reads and writes of its memory. Each
        backward pass adds its gradients to those of the step: two reads and a write.
    """

    flops_per_second: float
    link_bytes_per_second: float = float("inf")
    memory_bytes: int | None = None
    copies: int = 4
    stream_bytes_per_second: float = float("inf")


def seconds(speed: float, count: float | Fraction) -> Fraction:
    """The time of so much at a speed; none where the speed is infinite.

    Example:
      >>> seconds(4.0, 1), seconds(float("inf"), 1)
      (Fraction(1, 4), Fraction(0, 1))
    """
    return Fraction(0) if speed == float("inf") else Fraction(count) / Fraction(speed)
