"""What goes wrong on the way: the same bits all the same.

Faults come before messages that are named, never after a time, so no result depends on
how fast the machine is.
"""

import contextlib
import threading

import pytest

from splitjax.runtime import control, frame
from splitjax.runtime.certificates import make_certificates
from splitjax.runtime.control import Refused
from splitjax.runtime.network import MBIT_10, Slow, VirtualClock
from tests.runtime.conftest import batches, run_all
from tests.runtime.relay import Relay
from tests.runtime.served import STEPS, Served, model, start, whole

SECONDS = 60.0
BRIEF_SECONDS = 0.3


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("keys") / "keys", edges=2)


def name_of(message: bytes) -> str:
    """ "ack", or "train 2.1": tick and hop; of slot 0."""
    if control.is_control(message):
        return control.read(message).kind
    header = frame.peek(message)
    where = f"{header.kind} {header.tick}.{header.hop}"
    return where if header.slot == 0 else f"{where} of slot {header.slot}"


class Before:
    """Does something once, before the cloud sends the first message of a name."""

    def __init__(self):
        self.name, self.action, self.done = "", lambda: None, threading.Event()

    def __call__(self, name, action):
        self.name, self.action = name, action

    def wrap(self, channel):
        """For `Server`."""
        return _Spied(channel, self)

    def see(self, message):
        if name_of(message) == self.name and not self.done.is_set():
            self.done.set()
            self.action()


class _Spied:
    def __init__(self, channel, before):
        self.channel, self.before = channel, before
        self.receive, self.close = channel.receive, channel.close

    def send(self, message):
        self.before.see(message)
        self.channel.send(message)


@pytest.fixture
def before():
    return Before()


@pytest.fixture
def served(keys, tmp_path, before):
    """A function to a cloud whose messages `before` sees."""
    with contextlib.ExitStack() as stack:

        def make(name, **kwargs):
            options = dict(server=dict(wrap=before.wrap), slots=2, **kwargs)
            made = Served(model(name), tmp_path / "cloud", keys, **options)
            return stack.enter_context(made)

        yield make


PLACES = ["welcome", "weights 0.0", "train 1.0", "train 1.1", "ack", "saved"]
PLACES += ["predict 1.0"]


@pytest.mark.parametrize("place", PLACES)
def test_a_cut_connection_changes_nothing(place, served, before):
    both = served("u")
    with Relay(both.port) as relay:
        before(place, relay.cut)
        whole(model("u").edge(lambda: both.dial(port=relay.port)), "u")
        assert before.done.is_set() and relay.connections == 2


class Impatient:
    """A channel whose deadline is soon once something is held, and never before."""

    def __init__(self, channel, held):
        self.channel, self.held = channel, held
        self.send, self.close = channel.send, channel.close

    def receive(self, timeout):
        while True:
            try:
                return self.channel.receive(BRIEF_SECONDS)
            except TimeoutError:
                if self.held.is_set():
                    raise


@pytest.mark.parametrize(
    ("place", "up", "down"),
    [
        ("train 1.0", True, False),
        ("train 1.0", False, True),
        ("train 1.1", True, True),
        ("weights 0.0", False, True),
        ("saved", True, True),
    ],
)
def test_a_half_open_connection_changes_nothing(place, up, down, served, before):
    """The edge dials again; then what was held arrives, late, on the old connection."""
    both, held = served("u"), threading.Event()
    with Relay(both.port) as relay:

        def hold():
            relay.hold(up=up, down=down)
            held.set()

        def dial():
            if held.is_set():
                relay.release()
                held.clear()
            return Impatient(both.dial(port=relay.port), held)

        # Held upward, the answer arrives, and the edge's next message does not.
        before(place, hold)
        whole(model("u").edge(dial), "u")
        assert before.done.is_set() and relay.connections == 2


def test_an_edge_dials_until_it_is_let_in(served, before):
    both, dialed = served("micro"), []
    with Relay(both.port) as relay:

        def shut():
            relay.refuse = True
            relay.cut()

        def dial():
            dialed.append(relay.refuse)
            relay.refuse = relay.refuse and len(dialed) < 4
            return both.dial(port=relay.port)

        before("train 2.0", shut)
        whole(model("micro").edge(dial), "micro")
        assert dialed == [False, True, True, True] and relay.connections == 2


def test_a_slow_edge_ends_in_the_same_bits(keys, tmp_path):
    clock, one = VirtualClock(), model("micro")
    slow = dict(wrap=lambda channel: Slow(channel, MBIT_10, clock=clock))
    with Served(one, tmp_path, keys, server=slow) as both:
        whole(one.edge(lambda: slow["wrap"](both.dial())), "micro")
    assert clock.now() > 2 * STEPS * MBIT_10.delay_seconds


@contextlib.contextmanager
def in_thread(work):
    """Runs something beside; its error is raised at the end."""
    errors = []

    def run():
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(SECONDS)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_an_edge_that_hangs_does_not_hold_up_the_other(served, before):
    both = served("plain")
    with Relay(both.port) as relay:
        before("train 1.0", relay.hold)
        patient = dict(deadline_seconds=SECONDS)
        hung = model("plain").edge(lambda: both.dial(port=relay.port), **patient)
        with in_thread(lambda: whole(hung, "plain")) as thread:
            assert before.done.wait(SECONDS)
            whole(model("slot 1").edge(lambda: both.dial(1)), "slot 1")
            # All of the other's run fits into a wait of this one.
            assert thread.is_alive() and both.cloud.status()[0].tick == 2
            relay.release()
        assert relay.connections == 1


def test_an_edge_that_dies_does_not_hold_up_the_other(served, before):
    both, one = served("plain"), model("plain")
    died = threading.Event()

    def die():
        relay.refuse = True
        relay.cut()
        died.set()

    with Relay(both.port) as relay:
        before("train 1.0", die)
        edge = one.edge(lambda: both.dial(port=relay.port), patience_seconds=0.1)
        other = model("slot 1").edge(lambda: both.dial(1))
        with in_thread(lambda: whole(other, "slot 1")):
            with pytest.raises(ConnectionError, match="no cloud for"):
                run_all(edge, start(edge, one), batches(STEPS))
        assert died.is_set()
    # A new process of the edge begins anew.
    whole(one.edge(both.dial), "plain")


def test_a_silent_edge_loses_its_slot_to_its_next_process(served, before):
    both, one = served("plain", lease_seconds=BRIEF_SECONDS), model("plain")
    with Relay(both.port) as relay:
        before("train 1.0", relay.hold)
        patient = dict(deadline_seconds=SECONDS, patience_seconds=SECONDS)
        hung = one.edge(lambda: both.dial(port=relay.port), **patient)

        def late():
            with pytest.raises(Refused) as caught:
                whole(hung, "plain")
            assert caught.value.code in ("stale", "order")  # another went on

        with in_thread(late):
            assert before.done.wait(SECONDS)
            # It is told that the slot is busy until the lease has run out.
            whole(one.edge(both.dial, patience_seconds=SECONDS), "plain")
            relay.release()
        hung.close()
