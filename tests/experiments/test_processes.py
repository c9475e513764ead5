"""Edge and cloud as real processes: killed at any time, they end in the same bits."""

import csv
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from splitjax.data.synthetic import toy
from splitjax.runtime.certificates import make_certificates
from splitjax.storage import log
from splitjax.storage.checkpoint import Checkpoints
from splitjax.storage.lock import InUse, exclusive
from splitjax.storage.row_file import RowFile
from splitjax.train import loop, runs
from splitjax.train.finetune import Finetune
from splitjax.train.next_token import NextToken
from splitjax.train.serve import agreed

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 600.0  # until a test gives up; nothing is decided by time
# Slow enough that a step takes longer than to see it in the log and to kill someone.
SLOW = "--network=10Mbit,30ms"
ENDS = (signal.SIGINT, signal.SIGTERM)
CHANCE = dict(micro=2, in_flight=2, forward_bits=8, backward_bits=8, bridge="pca")
DELTA = "ragged() + delta(quantize(2, axis='channel', power_of_two=True), check=2)"
SHAPES = {
    "plain": dict(),
    "labels on the edge": dict(label_side="edge"),
    "frozen": dict(frozen_edge=True, send_once=True),
    "remember": dict(forward=DELTA, forward_bits=32, edge_dropout=False, map_rows=True),
}


@pytest.fixture(scope="module")
def options(tiny_model, tmp_path_factory):
    """Of an experiment of two epochs of 5 steps, with dropout."""
    folder = tmp_path_factory.mktemp("options")
    for path in tiny_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= dict(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    (folder / "config.json").write_text(json.dumps(config))
    for split, rows in (("train", 40), ("dev", 8)):
        table = toy(split, rows=rows)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            lines = zip(table.text_a, table.label.tolist(), strict=True)
            csv.writer(file).writerows([("text", "label"), *lines])
    given = dict(task=str(folder), model=str(folder), fit_text=(str(folder),))
    small = dict(layer=1, rank=4, batch_size=8, max_length=8, epochs=2)
    return {**given, **small, **CHANCE, "checkpoint_every": 3}


@pytest.fixture(scope="module")
def decoder(tiny_decoder):
    """Options of a language model's run whose text stays at the edge."""
    folder = str(tiny_decoder(family="gpt2", kv_heads=4, dropout=0.2))
    given = dict(task=f"{folder}/text.txt", model=folder, window=8, batch_size=8)
    cut = dict(after=("embed", "layer_0/attention"), forward="quantize(8)")
    return {**given, **cut, "limit": 24, "eval_limit": 0, "micro": 2, "in_flight": 2}


class Both:
    """The processes of an edge and a cloud, in a folder of their own."""

    def __init__(self, folder: pathlib.Path, options: dict, kind: type = Finetune):
        self.folder, self.experiment, name = folder, kind(**options), kind.__name__
        text = f"from {kind.__module__} import {name}\n\n\ndef get_config():\n"
        (folder / "mine.py").write_text(f"{text}    return {name}(**{options!r})\n")
        self.room = folder / "temporary"
        self.room.mkdir()
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TMPDIR": str(self.room),
        }
        self.keys = folder / "keys"
        self.port = 0
        self.all: list[subprocess.Popen] = []

    @property
    def edge_folder(self):
        return self.folder / "edge" / "split_seed_0"

    @property
    def cloud_folder(self):
        return self.folder / "cloud" / "slot_0" / "seed_0"

    def start(self, main, *arguments, name=""):
        """A process of a main, in a group of its own; its output goes to a file."""
        command = [sys.executable, "-m", f"experiments.{main}", "--config=mine.py"]
        with (self.folder / f"{name or main}.log").open("ab") as file:
            kwargs = dict(cwd=self.folder, env=self.environment, start_new_session=True)
            kwargs |= dict(stdout=file, stderr=file)
            self.all.append(subprocess.Popen([*command, *arguments], **kwargs))
        return self.all[-1]

    def cloud(self, *arguments):
        if not self.keys.exists():
            make_certificates(self.keys)
        place = (f"--certificates={self.keys}/cloud", "--workdir=cloud", *arguments)
        (self.folder / "cloud" / "address").unlink(missing_ok=True)
        return self.start("cloud", f"--address=localhost:{self.port}", *place)

    def edge(self, *arguments):
        place = (f"--certificates={self.keys}/edge_0", "--workdir=edge", *arguments)
        return self.start("edge", f"--address=localhost:{self.port}", *place)

    def until(self, done, *processes):
        """Waits until something is so; the processes must stay alive meanwhile."""
        end = time.monotonic() + SECONDS
        while not (found := done()):
            for one in processes:
                assert one.poll() is None, self.tail()
            assert time.monotonic() < end, self.tail()
            time.sleep(0.005)
        return found

    def address(self, process, folder="cloud"):
        path = self.folder / folder / "address"
        self.until(path.exists, process)
        self.port = int(path.read_text().rpartition(":")[2])

    def reach(self, step, *processes):
        """Waits until the edge has done a step."""
        self.until(lambda: steps_in(self.edge_folder) >= step, *processes)

    def tail(self):
        logs = self.folder.glob("*.log")
        return "\n".join(f"{path}:\n{path.read_text()[-3000:]}" for path in logs)

    def end(self):
        for one in self.all:
            if one.poll() is None:
                one.kill()
            one.wait()


def steps_in(folder):
    return max((line["step"] for line in log.read(folder)), default=0)


def kill(*processes):
    for one in processes:
        one.send_signal(signal.SIGKILL)
    for one in processes:
        one.wait()


@pytest.fixture
def both(options, tmp_path):
    """A function to the processes of a shape."""
    made = []

    def make(name="plain", kind=Finetune, given=options, **more):
        made.append(Both(tmp_path, {**given, **SHAPES[name], **more}, kind))
        return made[-1]

    yield make
    for one in made:
        one.end()


def equals_one_process(both, alone, edge_folder, cloud_folder, *, again=False):
    """Log and both checkpoints are, to the bit, those of a run in one process.

    What had to be sent again was sent, and counts: `up` may be more then.
    """
    loop.train(both.experiment, 0, alone, progress=False)
    found, want = log.read(edge_folder), log.read(alone)
    for one, other in zip(found, want, strict=True):
        for way in ("up", "down") if again and "up" in one else ():
            assert one.pop(way) >= other.pop(way)
    assert found == want
    want = runs.open_run(both.experiment, 0, alone)
    state, config = want.state, agreed(both.experiment, 0)
    config = {**config, "facts": want.parts.facts}
    edge = Checkpoints(edge_folder, both.experiment.identity(0))
    cloud = Checkpoints(cloud_folder, config)
    assert edge.latest() == cloud.latest() == state.step > 0
    found = edge.restore((state.edge, (), {}))[0], cloud.restore(tuple(state[1:3]))[0]
    jax.tree.map(
        np.testing.assert_array_equal, found, ((state.edge, (), {}), tuple(state[1:3]))
    )
    rows = rows_in(edge_folder / "rows")
    assert rows == rows_in(cloud_folder / "rows") == rows_in(alone / "rows" / "edge")
    assert bool(rows) == ("delta" in both.experiment.forward)


def rows_in(folder):
    """What was remembered of each example at the last checkpoint."""
    files = {path.name: RowFile(path) for path in folder.glob("*")}
    return {
        (name, number): (file.get(number).data.tobytes(), *file.get(number)[1:])
        for name, file in files.items()
        for number in file
    }


def is_free(port):
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
    return True


def group_is_gone(process):
    """No process is left of those that a main started."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    "kind", ["an encoder", pytest.param("a decoder", marks=pytest.mark.slow)]
)
def test_finetune_in_two_processes_is_the_run_of_one(kind, both, decoder, tmp_path):
    """All is equal, also the bytes of each step; only `seconds` is not compared."""
    more = dict(kind=NextToken, given=decoder) if kind == "a decoder" else {}
    one = both(epochs=1, **more)
    work = ("--config.mode=processes", "--workdir=work")
    done = one.start("finetune", *work, name="finetune")
    assert done.wait(SECONDS) == 0, one.tail()
    work = tmp_path / "work"
    cloud = work / "cloud" / "slot_0" / "seed_0"
    equals_one_process(one, tmp_path / "alone", work / "split_seed_0", cloud)
    assert group_is_gone(done)
    assert list(one.room.iterdir()) == [] and not (work / "cloud" / "address").exists()


def test_two_edges_on_one_workdir(options, tmp_path):
    def dial():
        raise AssertionError("it has nothing to say to a cloud")

    with exclusive(tmp_path), pytest.raises(InUse, match="in use by process"):
        loop.train(Finetune(**options), 0, tmp_path, cloud=loop.ToCloud(dial))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_killed_processes_end_in_the_bits_of_an_undisturbed_run(name, both, tmp_path):
    """Checkpoints are at steps 3, 5, 6, 9 and 10; nobody is killed at one."""
    one = both(name)
    cloud = one.cloud(SLOW)
    one.address(cloud)
    edge = one.edge(SLOW)
    one.reach(2, edge, cloud)
    kill(cloud)
    cloud = one.cloud(SLOW)
    one.reach(4, edge, cloud)
    kill(edge)
    edge = one.edge(SLOW)
    one.reach(7, edge, cloud)
    kill(edge, cloud)
    assert steps_in(one.edge_folder) < 10
    cloud, edge = one.cloud(SLOW), one.edge(SLOW)
    assert edge.wait(SECONDS) == 0, one.tail()
    cloud.send_signal(signal.SIGTERM)
    assert cloud.wait(SECONDS) == 0, one.tail()
    assert not (tmp_path / "cloud" / "address").exists() and is_free(one.port)
    folders = one.edge_folder, one.cloud_folder
    equals_one_process(one, tmp_path / "alone", *folders, again=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
def test_ctrl_c_and_sigterm_leave_nothing_behind(number, both, tmp_path):
    if number == signal.SIGINT:
        # A shell lets what it starts with "&" ignore it, and children inherit that.
        signal.signal(number, signal.default_int_handler)
    one = both(epochs=400)  # it does not end before
    work = ("--config.mode=processes", "--workdir=work")
    main = one.start("finetune", *work, name="finetune")
    folder = tmp_path / "work"
    one.until((folder / "cloud" / "address").exists, main)
    one.address(main, folder="work/cloud")
    one.until(lambda: steps_in(folder / "split_seed_0") >= 1, main)
    assert list(one.room.iterdir())
    if number == signal.SIGINT:
        os.killpg(main.pid, number)  # as a terminal does
    else:
        main.send_signal(number)  # as `kill`, a service manager or a container does
    assert main.wait(SECONDS) != 0
    assert group_is_gone(main) and is_free(one.port)
    assert list(one.room.iterdir()) == []
    assert not (folder / "cloud" / "address").exists()
    assert "Traceback" not in (folder / "cloud.log").read_text()
