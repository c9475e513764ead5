"""How long a step of split learning takes at best, from measured times."""

import dataclasses
import math
from collections.abc import Sequence

from splitjax.runtime.network import Network


@dataclasses.dataclass(frozen=True)
class Work:
    """What one micro-batch costs.

    Attributes:
      forward_seconds: of the edge, to its message.
      cloud_seconds: from that message to the reply.
      backward_seconds: of the edge, from the reply on.
      up_bytes: of the message.
      down_bytes: of the reply.
    """

    forward_seconds: float
    cloud_seconds: float
    backward_seconds: float
    up_bytes: int = 0
    down_bytes: int = 0


def makespan(
    work: Sequence[Work],
    up: Network,
    down: Network | None = None,
    *,
    in_flight: int = 1,
) -> float:
    """The time of one optimizer step whose parts wait for nothing but each other.

    Edge, uplink, cloud and downlink serve one micro-batch at a time, in order. The edge
    works as `Local.step` does: forwards while fewer than `in_flight` micro-batches are
    open, then the backward of the oldest. A message occupies its link for `8 n / rate`
    and arrives `delay` later.

    Args:
      work: of each micro-batch, in order.
      up: the network from the edge to the cloud.
      down: the way back; as `up` by default.
      in_flight: how many micro-batches may be open; 1 is the synchronous run.

    Returns:
      Seconds, from the first forward's begin to the last backward's end.

    Raises:
      ValueError: for `in_flight` below 1.

    Example:
      >>> work = [Work(1.0, 1.0, 1.0, up_bytes=125_000, down_bytes=125_000)] * 4
      >>> network = Network(1e6)  # one second for each message
      >>> [makespan(work, network, in_flight=n) for n in (1, 2, 4)]
      [20.0, 12.0, 8.0]
    """
    _check(in_flight)
    down = down or up
    edge = uplink = cloud = downlink = 0.0  # when each is free
    replies: list[float] = []  # when the reply to each forward arrives
    for number, tick in enumerate(work):
        if number >= in_flight:
            done = number - in_flight
            edge = max(edge, replies[done]) + work[done].backward_seconds
        edge += tick.forward_seconds
        uplink = max(uplink, edge) + up.busy_seconds(tick.up_bytes)
        cloud = max(cloud, uplink + up.delay_seconds) + tick.cloud_seconds
        downlink = max(downlink, cloud) + down.busy_seconds(tick.down_bytes)
        replies.append(downlink + down.delay_seconds)
    for done in range(max(0, len(work) - in_flight), len(work)):
        edge = max(edge, replies[done]) + work[done].backward_seconds
    return edge


def lower_bound(
    work: Sequence[Work],
    up: Network,
    down: Network | None = None,
    *,
    in_flight: int | None = None,
) -> float:
    """A time that no order of the same work can beat.

    The longest of: for each resource, its work and what must come before the first and
    after the last of it; on the edge, what is left to do when the first reply can have
    come; and, as at most `in_flight` micro-batches are open, the sum of their shortest
    times over `in_flight`.

    Args:
      work: see `makespan`, as the rest.
      up: see `makespan`.
      down: see `makespan`.
      in_flight: None: any number.

    Returns:
      Seconds; but for rounding at most `makespan` of the same arguments.

    Raises:
      ValueError: for `in_flight` below 1.

    Example:
      >>> work = [Work(1.0, 1.0, 1.0, up_bytes=125_000, down_bytes=125_000)] * 4
      >>> [lower_bound(work, Network(1e6), in_flight=n) for n in (1, 2, 4)]
      [20.0, 10.0, 8.0]
    """
    window = len(work) if in_flight is None else in_flight
    if not work:
        return 0.0
    _check(window)
    down = down or up
    paths = []  # a path's stages; those of even numbers occupy a resource
    for tick in work:
        sending = up.busy_seconds(tick.up_bytes), up.delay_seconds
        reply = down.busy_seconds(tick.down_bytes), down.delay_seconds
        paths.append(
            (tick.forward_seconds, 0.0, *sending, tick.cloud_seconds, 0.0, *reply)
            + (tick.backward_seconds,)
        )
    bounds = [math.fsum(map(math.fsum, paths)) / window]
    for place in (2, 4, 6):
        head = min(math.fsum(path[:place]) for path in paths)
        tail = min(math.fsum(path[place + 1 :]) for path in paths)
        bounds.append(head + math.fsum(path[place] for path in paths) + tail)
    forwards = sorted(tick.forward_seconds for tick in work)
    backwards = math.fsum(tick.backward_seconds for tick in work)
    bounds.append(math.fsum(forwards) + backwards)
    # Before the first reply no more than `in_flight` forwards have begun.
    first = min(math.fsum(path[:-1]) for path in paths)
    late = forwards[: max(0, len(work) - window)]
    bounds.append(first + math.fsum(late) + backwards)
    return max(bounds)


def _check(in_flight: int) -> None:
    if in_flight < 1:
        raise ValueError(f"{in_flight=}: expected at least 1")
