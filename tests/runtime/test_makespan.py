import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitjax.runtime.channel import pipe
from splitjax.runtime.makespan import Work, lower_bound, makespan
from splitjax.runtime.network import Network, Slow, VirtualClock

BIT = Network(8.0)  # one byte, one second
FAST = Network(math.inf)


def test_a_synchronous_step_is_the_sum_of_all():
    work = [Work(1, 2, 3, up_bytes=4, down_bytes=5)] * 3
    assert makespan(work, BIT) == 3 * 15
    assert makespan(work, Network(8.0, 0.5)) == 3 * 16
    assert makespan(work, BIT, Network(16.0, 1.0)) == 3 * 13.5


def test_without_a_cloud_the_edge_is_busy_all_the_time():
    work = [Work(1, 0, 2)] * 5
    assert makespan(work, FAST) == makespan(work, FAST, in_flight=5) == 15


@pytest.mark.parametrize(
    "one, m, in_flight, expected",
    [
        # F0 0-1, F1 1-2, reply 0 at 3, B0 3-4, F2 4-5, reply 1 at 5, B1 5-6, F3 6-7,
        # reply 2 at 7, B2 7-8, reply 3 at 9, B3 9-10.
        (Work(1, 2, 1), 4, 2, 10),
        # F0 to F3 0-4; replies at 3, 5, 7, 9; the last backward 9-10.
        (Work(1, 2, 1), 4, 4, 10),
        (Work(1, 2, 1), 4, 1, 16),
        # The uplink is the narrow one: 1 + 4 * 3 + 1 + 1 + 1.
        (Work(1, 1, 1, up_bytes=3, down_bytes=1), 4, 4, 16),
        # The downlink: 1 + 1 + 1 + 4 * 3 + 1.
        (Work(1, 1, 1, up_bytes=1, down_bytes=3), 4, 9, 16),
        # The edge: forwards 0-8, then the backwards, all replies are there.
        (Work(2, 1, 3), 4, 4, 20),
        # A window of 2 with a busy edge: F0 F1 0-4, reply 0 at 3; no wait ever after.
        (Work(2, 1, 3), 4, 2, 20),
    ],
)
def test_by_hand(one, m, in_flight, expected):
    assert makespan([one] * m, BIT, in_flight=in_flight) == expected


def test_the_delay_is_no_load():
    work = [Work(0, 0, 0, up_bytes=1, down_bytes=1)] * 10
    # Ten messages follow each other up; each reply goes down behind the one before.
    assert makespan(work, Network(8.0, 100.0), in_flight=10) == 1 + 100 + 10 + 100


def test_the_bounds_by_hand():
    work = [Work(1, 2, 1)] * 4
    assert lower_bound(work, BIT) == 1 + 8 + 1  # the cloud
    assert lower_bound(work, BIT, in_flight=1) == 16
    assert lower_bound([Work(2, 1, 3)] * 4, BIT) == 20  # the edge
    # The edge has done its forwards at 2, and waits for the first reply until 102.
    assert lower_bound([Work(1, 100, 50)] * 2, BIT) == 1 + 2 * 100 + 50
    assert lower_bound([Work(1, 100, 500)] * 2, BIT) == 1 + 100 + 2 * 500
    # With one forward in the window the other two come after the first reply.
    work = [Work(10, 1, 10)] * 3
    assert lower_bound(work, Network(8.0, 50.0), in_flight=1) == 3 * 121
    assert lower_bound(work, Network(8.0, 50.0)) == 10 + 101 + 30
    assert makespan(work, Network(8.0, 50.0), in_flight=3) == 10 + 101 + 30
    assert lower_bound(work, Network(8.0, 5.0), in_flight=2) == 10 + 11 + 10 + 30


def test_an_empty_step_takes_no_time():
    assert makespan([], BIT) == lower_bound([], BIT) == 0.0


def test_a_window_of_none_is_refused():
    for function in (makespan, lower_bound):
        with pytest.raises(ValueError, match="in_flight=0: expected at least 1"):
            function([Work(1, 1, 1)], BIT, in_flight=0)


SECONDS = st.integers(0, 16).map(lambda n: n / 8)
WORK = st.builds(Work, SECONDS, SECONDS, SECONDS, st.integers(0, 9), st.integers(0, 9))
WORKS = st.lists(WORK, max_size=6)
NETWORK = st.builds(Network, st.sampled_from([8.0, 64.0, 1024.0]), SECONDS)


@given(WORKS, NETWORK, NETWORK, st.integers(1, 7))
def test_the_bound_holds(work, up, down, in_flight):
    time = makespan(work, up, down, in_flight=in_flight)
    assert lower_bound(work, up, down) <= time
    assert lower_bound(work, up, down, in_flight=in_flight) <= time


@given(WORK, st.integers(1, 6), NETWORK, NETWORK, st.integers(1, 6))
def test_a_wider_window_is_not_slower_than_none(one, count, up, down, in_flight):
    work = [one] * count
    assert makespan(work, up, down, in_flight=in_flight) <= makespan(work, up, down)


@settings(max_examples=30, deadline=None)
@given(st.lists(WORK, max_size=3), NETWORK, NETWORK, st.integers(1, 3))
def test_no_order_beats_the_bound(work, up, down, in_flight):
    """Every order of the edge, each message served as it comes."""
    count = len(work)
    bound = lower_bound(work, up, down, in_flight=in_flight)
    events = [(kind, n) for n in range(count) for kind in "FB"]
    for order in itertools.permutations(events):
        edge = uplink = cloud = downlink = 0.0
        replies: dict = {}
        is_open = 0
        for kind, number in order:
            tick = work[number]
            if kind == "F":
                is_open += 1
                edge += tick.forward_seconds
                uplink = max(uplink, edge) + up.busy_seconds(tick.up_bytes)
                arrived = uplink + up.delay_seconds
                cloud = max(cloud, arrived) + tick.cloud_seconds
                downlink = max(downlink, cloud) + down.busy_seconds(tick.down_bytes)
                replies[number] = downlink + down.delay_seconds
            elif number not in replies:
                break  # its forward is not done
            else:
                is_open -= 1
                edge = max(edge, replies[number]) + tick.backward_seconds
            if is_open > in_flight:
                break
        else:
            assert bound <= edge


@pytest.mark.parametrize("in_flight", [1, 2, 3, 5])
def test_the_slow_channel_takes_the_time_of_the_makespan(in_flight):
    """Clocks of their own for both ends, which meet in the stamps alone."""
    up, down = Network(1024, 0.25), Network(2048, 0.5)
    work = [Work(n / 8, 0.5, 0.25 + n / 4, 16 + n, 8 * n) for n in range(5)]
    here, there = VirtualClock(), VirtualClock()
    one, other = pipe()
    edge, cloud = Slow(one, up, clock=here), Slow(other, down, clock=there)

    def spend(clock, seconds):
        clock.wait(clock.now() + seconds)

    def finish(tick):
        assert len(cloud.receive()) == tick.up_bytes
        spend(there, tick.cloud_seconds)
        cloud.send(bytes(tick.down_bytes))
        assert len(edge.receive()) == tick.down_bytes
        spend(here, tick.backward_seconds)

    waiting: list = []
    for tick in work:
        if len(waiting) == in_flight:
            finish(waiting.pop(0))
        spend(here, tick.forward_seconds)
        edge.send(bytes(tick.up_bytes))
        waiting.append(tick)
    for tick in waiting:
        finish(tick)
    assert here.now() == makespan(work, up, down, in_flight=in_flight)
