import contextlib
import os
import socket
import struct
import threading

import pytest

from tests.runtime.relay import HOST, Relay

SECONDS = 30.0
BRIEF_SECONDS = 0.1


@pytest.fixture
def target():
    """A listening socket."""
    with socket.create_server((HOST, 0)) as server:
        server.settimeout(SECONDS)
        yield server


@pytest.fixture
def relay(target):
    with Relay(target.getsockname()[1]) as relay:
        yield relay


def dial(relay):
    return socket.create_connection((HOST, relay.port), timeout=SECONDS)


@contextlib.contextmanager
def joined(relay, target):
    """The two ends of one connection through the relay."""
    with dial(relay) as near:
        far, _ = target.accept()
        far.settimeout(SECONDS)
        with far:
            yield near, far


def read(sock, count):
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part, "the other end closed"
        data += part
    return data


def hears_nothing(sock):
    sock.settimeout(BRIEF_SECONDS)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    sock.settimeout(SECONDS)
    return True


def test_bytes_are_forwarded_and_counted(relay, target):
    with joined(relay, target) as (near, far):
        data = os.urandom(3_000_000)
        thread = threading.Thread(target=near.sendall, args=(data,))
        thread.start()
        assert read(far, len(data)) == data
        thread.join()
        far.sendall(b"reply")
        assert read(near, 5) == b"reply"
    assert (relay.bytes_up, relay.bytes_down) == (len(data), 5)
    assert relay.connections == 1


def test_an_end_is_forwarded_and_the_way_back_stays_open(relay, target):
    with joined(relay, target) as (near, far):
        near.sendall(b"all")
        near.shutdown(socket.SHUT_WR)
        assert read(far, 3) == b"all" and far.recv(1) == b""
        far.sendall(b"reply")
        far.close()
        assert read(near, 5) == b"reply" and near.recv(1) == b""


def test_cut_resets_both_ends_and_takes_new_ones(relay, target):
    with joined(relay, target) as (near, far), joined(relay, target) as (other, _):
        relay.cut()
        for end in (near, far, other):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
    with joined(relay, target) as (near, far):
        near.sendall(b"again")
        assert read(far, 5) == b"again"
    assert relay.connections == 3


def test_hold_stops_both_ways_and_closes_nothing(relay, target):
    with joined(relay, target) as (near, far):
        relay.hold()
        near.sendall(b"up")
        far.sendall(b"down")
        assert hears_nothing(near) and hears_nothing(far)
        assert (relay.bytes_up, relay.bytes_down) == (0, 0)
        relay.release()
        assert read(far, 2) == b"up" and read(near, 4) == b"down"


def test_hold_of_one_way(relay, target):
    with joined(relay, target) as (near, far):
        relay.hold(up=False)
        near.sendall(b"up")
        assert read(far, 2) == b"up"
        far.sendall(b"down")
        far.close()
        assert hears_nothing(near)  # not even of the end
        relay.release()
        assert read(near, 4) == b"down" and near.recv(1) == b""


def test_what_is_held_can_be_cut(relay, target):
    with joined(relay, target) as (near, far):
        relay.hold()
        near.sendall(b"lost")
        assert hears_nothing(far)
        relay.cut()
        with pytest.raises(ConnectionResetError):
            far.recv(1)
        relay.release()
    assert relay.bytes_up == 0


def test_new_connections_are_refused_on_demand(relay, target):
    with joined(relay, target) as (near, far):
        relay.refuse = True
        with pytest.raises(ConnectionResetError), dial(relay) as other:
            other.recv(1)
        near.sendall(b"old")
        assert read(far, 3) == b"old"
        relay.refuse = False
    with joined(relay, target):
        pass
    assert relay.connections == 2


def test_a_target_that_is_not_there_resets(relay, target):
    target.close()
    with pytest.raises(ConnectionResetError), dial(relay) as near:
        near.recv(1)


@pytest.mark.parametrize("held", [False, True])
def test_a_reset_is_forwarded(held, relay, target):
    with joined(relay, target) as (near, far):
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if held:
            relay.hold()
        far.close()
        if held:
            assert hears_nothing(near)
            relay.release()
        with pytest.raises(ConnectionResetError):
            near.recv(1)


def test_nothing_is_left_behind(target):
    def here():
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    before = here()
    with Relay(target.getsockname()[1]) as relay:
        near = dial(relay)
        far, _ = target.accept()
        relay.hold()
        near.sendall(b"x")
    with pytest.raises(ConnectionRefusedError):
        dial(relay)
    for end in (near, far):
        with end, pytest.raises(ConnectionResetError):
            end.recv(1)
    assert here() == before


def test_a_busy_port_is_an_error_of_who_asks(target):
    before = threading.active_count()
    with pytest.raises(OSError, match="in use"), Relay(1, target.getsockname()[1]):
        pass
    assert threading.active_count() == before
