"""What goes wrong at an end: the same bits, or a typed error and then the same."""

import contextlib
import errno
import functools
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from splitjax.runtime import control
from splitjax.runtime.certificates import make_certificates
from splitjax.runtime.control import Refused
from splitjax.runtime.ledger import WENT
from splitjax.storage import journal as journal_module
from splitjax.storage.frames import Frames
from splitjax.storage.journal import Journal
from splitjax.storage.lock import exclusive
from tests.runtime.conftest import ROUGH, Model, batches, run_all, same
from tests.runtime.served import SAVED, STEPS, Served, alone, model, start, whole


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("keys") / "keys", edges=2)


@pytest.fixture
def served(keys, tmp_path):
    """A function to a cloud."""
    with contextlib.ExitStack() as stack:

        def make(name):
            return stack.enter_context(Served(model(name), tmp_path / "cloud", keys))

        yield make


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


def test_a_kept_frame_that_finds_no_room_is_told_too(here, tmp_path, monkeypatch):
    one, [step] = Model(frozen=1, link=ROUGH), batches(1)
    local = one.local()
    want, losses = run_all(local, start(local, one), [step])
    both, name = here(one), ["0" * 32]
    edge = one.edge(both.dial)
    edge.keep(Frames(tmp_path / "edge"))
    run = start(edge, one)

    def full(frames, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    place = both.cloud._places[0].slot._frames
    monkeypatch.setattr(place, "put", functools.partial(full, place))
    with pytest.raises(Refused, match="disk is full.*No space") as caught:
        edge.step(run, step, names=name)
    assert caught.value.code == "full"
    edge.close()
    # The slot is made anew of its journal, and what was applied is applied once.
    edge = one.edge(both.dial)
    edge.keep(Frames(tmp_path / "again"))
    run, metrics = edge.step(start(edge, one), step, names=name)
    assert [float(metrics["loss"])] == losses
    same(run.edge, want.edge)
    edge.close()


def test_what_may_not_be_on_disk_is_not_answered(served, monkeypatch):
    both, one = served("u"), model("u")
    edge, steps = one.edge(both.dial), batches(STEPS)
    run, kept = kept_at(edge, one, steps)

    def failing(file):
        raise OSError(errno.EIO, "Input/output error")

    sent = both.cloud.meter.totals(kind="train")["bytes_down"]
    with monkeypatch.context() as patched:
        patched.setattr(journal_module.os, "fsync", failing)
        with pytest.raises(Refused, match="takes no more") as caught:
            run_all(edge, run, steps[SAVED:])
    assert caught.value.code == "storage"
    assert both.cloud.meter.totals(kind="train")["bytes_down"] == sent
    edge.close()
    resume(both, "u", run, kept)


@pytest.mark.slow
def test_a_real_limit_is_told_at_the_journal_and_at_the_checkpoint(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.runtime.full_disk", str(tmp_path)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    kwargs = dict(cwd=root, env=environment, capture_output=True, text=True)
    done = subprocess.run(command, check=False, **kwargs)
    assert done.returncode == 0, done.stderr


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
    with pytest.raises(Refused, match="the edge has protocol 99, the cloud 2"):
        start(edge, one)
    whole(one.edge(both.dial), "plain")
