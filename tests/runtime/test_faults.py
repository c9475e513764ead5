"""What goes wrong on the way, or at one end: the same bits, or an error with a type.

Faults come before messages that are named, never after a time, so no result depends on
how fast the machine is.
"""

import contextlib
import errno
import os
import threading

import jax
import pytest

from splitjax.runtime import control, frame
from splitjax.runtime.certificates import make_certificates
from splitjax.runtime.control import Refused
from splitjax.runtime.ledger import WENT
from splitjax.runtime.network import MBIT_10, Slow, VirtualClock
from splitjax.storage import journal as journal_module
from splitjax.storage.journal import Journal
from splitjax.storage.lock import exclusive
from tests.runtime.conftest import batches, run_all, same
from tests.runtime.relay import Relay
from tests.runtime.served import Served, alone, model, start

SECONDS = 60.0
STEPS, SAVED = 4, 2  # of a run, and before its checkpoint
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


def whole(edge, name):
    """A run with a checkpoint and a forward pass ends in the bits of one process."""
    one, (want, losses, out) = model(name), alone(name, STEPS)
    steps = batches(STEPS, micro=one.micro)
    run, first = run_all(edge, start(edge, one), steps[:SAVED], in_flight=one.micro)
    edge.saved(run)
    run, rest = run_all(edge, run, steps[SAVED:], in_flight=one.micro)
    assert first + rest == losses
    same(edge.predict(run, one.x), out)
    same(run.edge, want.edge)
    edge.close()


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


def kept_at(edge, one, steps):
    """Runs to a checkpoint; gives the run and what the edge has on disk of it."""
    run, _ = run_all(edge, start(edge, one), steps[:SAVED], in_flight=one.micro)
    kept = jax.device_get(run.edge)
    edge.saved(run)
    return run, kept


def resume(both, name, run, kept):
    """A new process of the edge goes on from its checkpoint, to the right bits."""
    one, (want, losses, _) = model(name), alone(name, STEPS)
    edge = one.edge(both.dial)
    begun = start(edge, one, tick=run.tick)
    begun = begun._replace(edge=jax.tree.map(jax.numpy.asarray, kept))
    steps = batches(STEPS, micro=one.micro)[SAVED:]
    run, found = run_all(edge, begun, steps, in_flight=one.micro)
    assert found == losses[SAVED:]
    same(run.edge, want.edge)
    same(both.cloud._places[0].slot.lane.state[1], want.slot)
    edge.close()


def journal_of(both, folder):
    [path] = (folder / "cloud" / "slot_0" / "run" / "journal").iterdir()
    return path


@pytest.mark.parametrize("room", [0, 60, 400, 900])
def test_a_full_disk_is_told_and_when_there_is_room_the_run_goes_on(
    room, served, tmp_path, monkeypatch
):
    both, one, left = served("u"), model("u"), []
    pwrite = os.pwrite

    def limited(file, data, offset):
        if not left:
            return pwrite(file, data, offset)
        if not (part := data[: left[0]]):
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(part)
        return pwrite(file, part, offset)

    monkeypatch.setattr(journal_module.os, "pwrite", limited)
    edge = one.edge(both.dial)
    steps = batches(STEPS)
    run, kept = kept_at(edge, one, steps)
    path = journal_of(both, tmp_path)
    size = path.stat().st_size
    left.append(room)
    with pytest.raises(Refused, match="disk is full.*no room") as caught:
        run_all(edge, run, steps[SAVED:])
    assert caught.value.code == "full"
    edge.close()
    assert size <= path.stat().st_size <= size + room
    with Journal(path) as journal:
        assert journal.torn_bytes == 0
    other = one.edge(both.dial)
    with pytest.raises(Refused, match="disk is full") as caught:
        start(other, one, tick=run.tick)
        run_all(other, run._replace(edge=kept), steps[SAVED:])
    other.close()
    left.clear()
    resume(both, "u", run, kept)


@pytest.mark.parametrize("saved", [True, False])
def test_a_replay_with_another_answer_sends_both_to_the_checkpoint(
    saved, served, tmp_path
):
    both, one = served("u"), model("u")
    edge, steps = one.edge(both.dial), batches(STEPS)
    if saved:
        run, kept = kept_at(edge, one, steps)
        middle, _ = run_all(edge, run, steps[SAVED:3])
    else:
        middle, _ = run_all(edge, start(edge, one), steps[:3])
    both.stop()
    path = journal_of(both, tmp_path)
    with Journal(path) as journal:
        records = [(kind, data) for _, kind, data in journal]
    path.unlink()
    with Journal(path) as journal:
        for kind, data in records:
            turned = data[:-1] + bytes([data[-1] ^ 1]) if kind == WENT else data
            journal.append(kind, turned)
    both.start()
    with pytest.raises(Refused, match="gives another answer than before") as caught:
        run_all(edge, middle, steps[3:])
    assert caught.value.code == "replay"
    edge.close()
    if saved:
        resume(both, "u", run, kept)
    else:
        whole(one.edge(both.dial), "u")


def test_two_clouds_on_one_folder(served, keys, tmp_path):
    first, one = served("plain"), model("plain")
    edge = one.edge(first.dial)
    run, _ = run_all(edge, start(edge, one), batches(1))
    with Served(one, tmp_path / "cloud", keys) as second:
        other = one.edge(second.dial, patience_seconds=0.1)
        with pytest.raises(ConnectionError, match="served by another cloud"):
            start(other, one)
        run, _ = run_all(edge, run, batches(2)[1:])  # the first goes on
        edge.close()
        first.stop()
        with exclusive(tmp_path / "cloud" / "slot_0" / "run"):
            pass  # and lets go
        whole(one.edge(second.dial), "plain")


def test_unlike_versions_are_named(served, monkeypatch):
    both, one = served("plain"), model("plain")
    with monkeypatch.context() as patch:
        patch.setattr(control, "software", lambda: "0.0.7")
        edge = one.edge(both.dial)
    with pytest.raises(Refused, match="the edge has version '0.0.7', the cl") as caught:
        start(edge, one)
    assert caught.value.code == "version"
    with monkeypatch.context() as patch:
        patch.setattr(control, "PROTOCOL", 99)
        edge = one.edge(both.dial)
    with pytest.raises(Refused, match="the edge has protocol 99, the cloud 1"):
        start(edge, one)
    whole(one.edge(both.dial), "plain")
