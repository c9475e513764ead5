import math
import struct
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitjax.runtime import network as module
from splitjax.runtime.channel import Closed, pipe
from splitjax.runtime.network import (
    MBIT_10,
    MBIT_100,
    Network,
    RealClock,
    Slow,
    VirtualClock,
    WrongStamp,
)
from splitjax.runtime.schema import FrameError

# One byte takes 2^-7 s and the delay is 1/4 s: sums of them are exact.
LINK = Network(1024, 0.25)
ONE = 1 / 128


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def ends(clock):
    """An edge and a cloud on one slow link with a virtual clock."""
    return [Slow(end, LINK, clock=clock) for end in pipe()]


def test_the_named_networks():
    assert MBIT_10 == Network.parse("10Mbit,20ms") == Network(10_000_000, 0.02)
    assert MBIT_100 == Network.parse("100Mbit,20ms") == Network(100_000_000, 0.02)


@pytest.mark.parametrize(
    "text, rate, delay",
    [
        ("10Mbit,20ms", 10e6, 0.02),
        (" 1.5 Gbit/s , 5 ms ", 1.5e9, 0.005),
        ("9600bit,1s", 9600, 1),
        ("64kbit/s,250us", 64e3, 250e-6),
        (".5mbit,0ms", 5e5, 0),
    ],
)
def test_a_network_as_text(text, rate, delay):
    network = Network.parse(text, overhead_bytes=40)
    assert network == Network(rate, delay, 40)
    assert Network.parse(str(network), overhead_bytes=40) == network


@pytest.mark.parametrize(
    "text",
    ["", "10Mbit", "20ms", "10MB,20ms", "10Mbit,20", "-1Mbit,2ms", "1e6bit,2ms"]
    + ["10Mbit,20ms,3", "10Mbit;20ms", "nanMbit,1ms", "1kbps,1ms"],
)
def test_another_text_is_refused(text):
    with pytest.raises(ValueError, match="expected a rate in bit"):
        Network.parse(text)


def test_a_network_of_no_rate_is_refused():
    for rate in (0, -1, math.nan):
        with pytest.raises(ValueError, match="expected > 0"):
            Network(rate)
    with pytest.raises(ValueError, match="expected > 0"):
        Network.parse("0Mbit,20ms")
    for rest in ((-1.0, 0), (math.inf, 0), (math.nan, 0), (0.0, -1)):
        with pytest.raises(ValueError, match="finite and at least 0"):
            Network(1.0, *rest)


def test_the_time_on_the_link():
    assert Network(1e6, 9.0).busy_seconds(125_000) == 1.0
    assert Network(1e6, 9.0, 25).busy_seconds(100) == 1e-3
    assert Network(math.inf).busy_seconds(10**12) == 0.0


def test_a_message_arrives_after_its_bits_and_the_delay(ends, clock):
    edge, cloud = ends
    edge.send(bytes(8))
    assert clock.now() == 0.0  # who sends does not wait
    assert cloud.receive() == bytes(8)
    assert clock.now() == 8 * ONE + 0.25


def test_messages_follow_each_other_and_their_delays_overlap(ends, clock):
    edge, cloud = ends
    arrivals = []
    for size in (8, 16, 0, 4):
        edge.send(bytes(size))
    for size in (8, 16, 0, 4):
        assert len(cloud.receive()) == size
        arrivals.append(clock.now())
    assert arrivals == [0.25 + n * ONE for n in (8, 24, 24, 28)]


def test_a_link_that_rests_is_free_at_once(ends, clock):
    edge, cloud = ends
    edge.send(bytes(8))
    cloud.receive()
    clock.wait(10.0)
    edge.send(bytes(8))
    cloud.receive()
    assert clock.now() == 10.25 + 8 * ONE


def test_the_directions_do_not_share_the_link(ends, clock):
    edge, cloud = ends
    edge.send(bytes(64))
    cloud.send(bytes(8))
    edge.receive()
    assert clock.now() == 0.25 + 8 * ONE
    cloud.receive()
    assert clock.now() == 0.25 + 64 * ONE


def test_each_direction_has_its_own_network(clock):
    one, other = pipe()
    edge = Slow(one, Network(1024, 1.0), clock=clock)
    cloud = Slow(other, Network(math.inf), clock=clock)
    edge.send(b"up")
    cloud.send(b"down")
    assert edge.receive() == b"down" and clock.now() == 0.0
    assert cloud.receive() == b"up" and clock.now() == 1.0 + 2 * ONE


def test_overhead_takes_time_too(clock):
    edge, cloud = (Slow(end, Network(1024, 0.0, 24), clock=clock) for end in pipe())
    edge.send(bytes(8))
    cloud.receive()
    assert clock.now() == 32 * ONE


def test_a_message_that_is_not_due_in_time_is_kept(ends, clock):
    edge, cloud = ends
    edge.send(b"12345678")
    for start in (0.0, 0.125):
        assert clock.now() == start
        with pytest.raises(TimeoutError, match="due within 0.125 s"):
            cloud.receive(timeout=0.125)
    with pytest.raises(TimeoutError):
        cloud.receive(timeout=0)
    assert clock.now() == 0.25
    assert cloud.receive(timeout=8 * ONE) == b"12345678"
    assert clock.now() == 0.25 + 8 * ONE
    with pytest.raises(TimeoutError):
        cloud.receive(timeout=0)


def test_the_end_comes_after_what_was_sent(ends, clock):
    edge, cloud = ends
    edge.send(b"last")
    edge.close()
    assert cloud.receive() == b"last" and clock.now() > 0.25
    with pytest.raises(Closed):
        cloud.receive()
    with pytest.raises(Closed):
        edge.receive()
    with pytest.raises(Closed):
        cloud.send(b"more")


@pytest.mark.parametrize("due", [math.nan, math.inf, -math.inf, 3601.0, 1e300], ids=str)
def test_a_stamp_that_cannot_be_true_is_refused(due, clock):
    other, mine = pipe()
    cloud = Slow(mine, LINK, clock=clock)
    other.send(struct.pack("<d", due) + b"x")
    other.send(struct.pack("<d", 1.0) + b"y")
    with pytest.raises(WrongStamp, match="one machine"):
        cloud.receive()
    assert clock.now() == 0.0
    assert cloud.receive() == b"y" and clock.now() == 1.0


def test_a_stamp_of_the_past_is_due_at_once(clock):
    other, mine = pipe()
    other.send(struct.pack("<d", -5.0) + b"x")
    assert Slow(mine, LINK, clock=clock).receive() == b"x" and clock.now() == 0.0


@pytest.mark.parametrize("size", range(8))
def test_a_message_without_a_stamp_is_refused(size, clock):
    other, mine = pipe()
    other.send(bytes(size))
    with pytest.raises(WrongStamp, match="has no due time"):
        Slow(mine, LINK, clock=clock).receive()
    assert issubclass(WrongStamp, FrameError)


def test_a_message_of_more_than_an_hour_is_not_sent(ends):
    edge, cloud = ends
    with pytest.raises(ValueError, match=r"after 3600 s over 1\.024kbit,250ms"):
        edge.send(bytes(3600 * 128))
    edge.send(b"x")
    assert cloud.receive() == b"x"  # and the link is as free as before


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(0, 999)), max_size=20))
def test_the_formula_of_the_stamp(rows):
    one, wire = pipe()
    clock = VirtualClock()
    slow = Slow(one, Network(1000, 0.5, 3), clock=clock)
    free = 0.0
    for pause, size in rows:
        clock.wait(clock.now() + pause)
        slow.send(bytes(size))
        free = max(free, clock.now()) + 8 * (size + 3) / 1000
        data = wire.receive()
        assert data == struct.pack("<d", free + 0.5) + bytes(size)


def test_a_sender_and_a_receiver_thread():
    edge, cloud = (Slow(end, Network(1e9, 1e-4)) for end in pipe())
    messages = [bytes([n]) * n for n in range(200)]

    def work():
        for message in messages:
            edge.send(message)

    thread = threading.Thread(target=work)
    thread.start()
    got = [cloud.receive(timeout=60) for _ in messages]
    thread.join()
    assert got == messages


def test_who_waits_for_a_late_message_hears_that_the_channel_closed():
    edge, cloud = (Slow(end, Network(math.inf, 600.0)) for end in pipe())
    edge.send(b"late")
    timer = threading.Timer(0.05, cloud.close)
    timer.start()
    begin = time.monotonic()
    with pytest.raises(Closed):
        cloud.receive()
    timer.join()
    assert time.monotonic() - begin < 60


def test_the_clock_is_one_for_all_processes():
    monotonic = time.clock_gettime(time.CLOCK_MONOTONIC)
    assert 0 <= RealClock().now() - monotonic < 60


def test_the_clock_sleeps_and_then_looks_often(monkeypatch):
    now, sleeps = [100.0], []

    class Time:
        @staticmethod
        def monotonic():
            now[0] += 1e-5  # asking takes a while
            return now[0]

        @staticmethod
        def sleep(seconds):
            sleeps.append(seconds)
            now[0] += seconds

    monkeypatch.setattr(module, "time", Time)
    RealClock().wait(102.0)
    assert 102.0 <= now[0] < 102.0 + 1e-4
    assert sleeps[0] == pytest.approx(2.0 - 0.0004, abs=1e-4) and set(sleeps[1:]) == {0}
    count = len(sleeps)
    RealClock().wait(50.0)
    assert len(sleeps) == count


def test_a_slow_message_is_not_early():
    edge, cloud = (Slow(end, Network(8e6, 0.005)) for end in pipe())
    begin = time.monotonic()
    edge.send(bytes(10_000))  # 10 ms
    cloud.receive()
    assert time.monotonic() - begin >= 0.015


def test_the_virtual_clock_does_not_go_back(clock):
    clock.wait(2.0)
    clock.wait(1.0)
    assert clock.now() == 2.0
