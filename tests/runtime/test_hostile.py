"""Hostile input is refused with its code, changes nothing, and troubles nobody else."""

import dataclasses
import functools
import hashlib
import os
import pickle
import threading
import tracemalloc

import grpc
import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest

from splitjax.core.message import is_sized
from splitjax.core.tree import spec_of
from splitjax.runtime import control, frame
from splitjax.runtime.channel import (
    LAST,
    MORE,
    BadPiece,
    Closed,
    Joiner,
    Mailbox,
    chunks,
    pipe,
)
from splitjax.runtime.cloud import CALLERS, Plan
from splitjax.runtime.control import Refused
from splitjax.runtime.guard import Guard, bearer
from splitjax.runtime.schema import FrameError, Schema, WrongSchema
from splitjax.runtime.server import PATH, Server
from splitjax.runtime.shapes import MOST, Shapes
from splitjax.train.experiment import Experiment
from splitjax.train.serve import agreed
from splitjax.train.serve import build as build_experiment
from tests.runtime.conftest import ROUGH, Here, Model, batches, run_all, same

MODELS = {
    "rough": dict(link=ROUGH, micro=2),
    "frozen": dict(link=ROUGH, frozen=1),
}
NAME, OTHER_NAME = "0" * 32, "1" * 32
SECONDS = 20.0
STEPS = 4


class Tapped:
    """A channel that remembers the frames that were sent."""

    def __init__(self, channel, sent):
        self.channel, self.sent = channel, sent
        self.receive, self.close = channel.receive, channel.close

    def send(self, message):
        if message[:4] == frame.MAGIC:
            self.sent.append(bytes(message))
        self.channel.send(message)


class World:
    """A cloud with two edges that learn, and the runs that theirs must equal."""

    def __init__(self, name, folder):
        self.model = Model(**MODELS[name])
        models = [self.model, dataclasses.replace(self.model, slot=1)]
        self.here = Here(self.model, folder, slots=2)
        self.sent = [[], []]
        self.dials = [0, 0]
        self.edges = [m.edge(functools.partial(self.dial, m.slot)) for m in models]
        self.runs = [
            edge.start(m.params, m.state, m.x)
            for edge, m in zip(self.edges, models, strict=True)
        ]
        self.drivers = [m.local() for m in models]
        self.alone = [
            driver.start(m.params, m.state, m.x)
            for driver, m in zip(self.drivers, models, strict=True)
        ]
        self.steps = batches(STEPS, micro=self.model.micro)
        self.step()
        for edge, run in zip(self.edges, self.runs, strict=True):
            edge.saved(run)
        self.step()

    def dial(self, slot):
        self.dials[slot] += 1
        return Tapped(self.here.dial(slot), self.sent[slot])

    def step(self):
        """A step of each edge is what it is without a cloud."""
        for number in (0, 1):
            run, driver = self.runs[number], self.drivers[number]
            batch = self.steps[run.step % STEPS]
            self.sent[number].clear()
            self.runs[number], found = self.edges[number].step(run, batch)
            self.alone[number], want = driver.step(self.alone[number], batch)
            assert float(found["loss"]) == float(want["loss"])
            same(self.runs[number].edge, self.alone[number].edge)

    @property
    def slot(self):
        return self.here.cloud._places[0].slot

    def hello(self, **changes):
        """As the edge says it when it dials again: it has the lease."""
        fields = self.edges[0]._outbox._hello
        now = {"fresh": False, "resumed": False, "tick": self.slot.lane.tick}
        return {**fields, **now, **changes}

    def greet(self):
        channel = self.here.dial()
        channel.send(control.write("hello", **self.hello()))
        assert control.read(channel.receive(SECONDS)).kind == "welcome"
        return channel

    def frame(self, *, data=None, change=None, **where):
        """A frame that is right but for what is asked."""
        lane = self.slot.lane
        at = {"kind": "train", "run": lane.run, "slot": 0, "tick": lane.tick, "hop": 0}
        schema = self.schema(where.get("tick", lane.tick))
        tree = frame.read(schema, data or self.sent[0][0])[1]
        tree = jax.tree.map(np.array, tree)
        if change is not None:
            change(tree)
        return frame.write(schema, tree, **{**at, **where})

    def schema(self, tick):
        lane = self.slot.lane
        at = lane._at(tick % 100)
        spec = next(lane.shapes.train())
        return lane._programs.exchanges(*lane._specs, spec, at)[0].up

    def look(self):
        """All of the slot that an edge could move or grow."""
        slot, lane = self.slot, self.slot.lane
        sizes = [len(x) for x in (slot._held, slot._names, slot._shapes, slot._frames)]
        sizes += [len(slot._answers), slot._ledger._journal.size_bytes]
        programs = lane._programs
        caches = programs._schemas, programs._exchanges, programs._compiled
        sizes += [len(x) for x in caches]
        files = sorted(str(p) for p in slot._ledger.folder.rglob("*"))
        tick = lane.tick, slot.base, dict(lane._done), slot._ack
        return slot, sizes, files, tick, jax.device_get(lane.state)

    def close(self):
        for edge in self.edges:
            edge.close()
        self.here.close()


@pytest.fixture(scope="module", params=MODELS)
def world(request, tmp_path_factory):
    made = World(request.param, tmp_path_factory.mktemp("cloud"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared():
    """A model, whose functions compile once."""
    return Model(**MODELS["rough"])


def refusal(channel):
    """The code of the refusal that ends a session."""
    while True:
        data = channel.receive(SECONDS)
        if control.is_control(data) and control.read(data).kind == "refused":
            break
    with pytest.raises(Closed):
        channel.receive(SECONDS)
    return control.read(data).fields["code"]


def fill(kind, value):
    """Puts a value into the first array of floats of a kind."""

    def change(tree):
        arrays = [
            node.buffer if is_sized(node) else node
            for node in jax.tree.leaves(tree, is_leaf=is_sized)
        ]
        found = [a for a in arrays if a.dtype == kind]
        found[0].reshape(-1)[0] = value

    return change


def too_many(tree):
    """More examples than there are."""
    tree["target"]["n_valid"][...] = 99


def seal(body):
    """Adds the digest that an attacker can compute as well as we can."""
    return body + hashlib.blake2b(body, digest_size=frame.DIGEST_BYTES).digest()


def flip(data):
    """The last bit is another."""
    return data[:-1] + bytes([data[-1] ^ 1])


def with_head(data, **changes):
    """A frame with other fields in its header, and a digest that fits."""
    names = ("magic", "version", "hop", "kind", "run", "slot", "tick", "schema")
    head = dict(zip(names, frame.HEAD.unpack_from(data), strict=True))
    head = frame.HEAD.pack(*{**head, **changes}.values())
    return seal(head + data[frame.HEAD.size : -frame.DIGEST_BYTES])


def shape(tree):
    return control.write("shape", batch=Schema.of(spec_of(tree)).to_bytes())


def packed(*made):
    return control.MAGIC + msgpack.packb(list(made))


class Trap:
    """Makes a file when it is unpickled."""

    path = ""

    def __reduce__(self):
        return os.mkdir, (self.path,)


BATCH = batches(1)[0][0]
NUMBERS = {name: np.zeros(3, dtype) for name, dtype in (("a", "f4"), ("b", "i4"))}
BF16 = ml_dtypes.bfloat16
DEEP = {"a/" * 5000 + "x": np.zeros(3, np.float32)}
ACK_OF_TEXTS = {"tick": 3, "metrics": {"loss": "x"}, "lost": []}


def other(w, **leaves):
    where = {"run": w.slot.lane.run, "slot": 0, "tick": w.slot.lane.tick, "hop": 0}
    return frame.write(Schema.of(leaves), leaves, kind="train", **where)


ATTACKS = {
    "nothing": (lambda w: b"", "Truncated"),
    "cut": (lambda w: w.frame()[:-1], "WrongDigest|Truncated"),
    "only a header": (lambda w: w.frame()[: frame.OVERHEAD], "Truncated"),
    "longer": (lambda w: w.frame() + bytes(10**6), "TooLarge"),
    "a bit": (lambda w: flip(w.frame()), "WrongDigest"),
    "magic": (lambda w: with_head(w.frame(), magic=b"spJY"), "NotAFrame"),
    "version": (lambda w: with_head(w.frame(), version=2), "WrongVersion"),
    "kind": (lambda w: w.frame(kind="weights"), "order"),
    "unknown kind": (lambda w: w.frame(kind="evil"), "order"),
    "no kind": (lambda w: with_head(w.frame(), kind=bytes(8)), "NotAFrame"),
    "other leaves": (lambda w: other(w, **NUMBERS), "WrongSchema"),
    "other dtype": (
        lambda w: with_head(other(w, **NUMBERS), schema=w.schema(0).hash),
        "Truncated",
    ),
    "unknown schema": (
        lambda w: with_head(w.frame(), schema=b"schema!?"),
        "WrongSchema",
    ),
    "nan": (lambda w: w.frame(change=fill(np.float32, np.nan)), "NonFinite"),
    "infinity": (lambda w: w.frame(change=fill(np.float32, np.inf)), "NonFinite"),
    "nan as a scale": (lambda w: w.frame(change=fill(BF16, np.nan)), "NonFinite"),
    "infinity as a scale": (lambda w: w.frame(change=fill(BF16, -np.inf)), "NonFinite"),
    "labels that are not": (lambda w: w.frame(change=too_many), "labels"),
    "other run": (lambda w: w.frame(run=w.slot.lane.run ^ 1), "run"),
    "other slot": (lambda w: w.frame(slot=1), "run"),
    "huge slot": (lambda w: w.frame(slot=2**32 - 1), "run"),
    "settled tick": (lambda w: w.frame(tick=0), "stale"),
    "next step": (lambda w: w.frame(tick=w.slot.lane.end), "order"),
    "tick beyond int32": (lambda w: w.frame(tick=2**31), "order"),
    "tick beyond int64": (lambda w: w.frame(tick=2**64 - 1), "order"),
    "hop": (lambda w: w.frame(hop=9), "order"),
    "greatest hop": (lambda w: w.frame(hop=2**16 - 1), "order"),
    "hop of an answered tick": (
        lambda w: w.frame(tick=w.slot.lane.tick - 1, hop=7),
        "order",
    ),
    "same tick, other digest": (
        lambda w: w.frame(
            tick=w.slot.lane.tick - 1,
            change=fill(np.float32, 0.123),
            data=w.sent[0][-1],
        ),
        "digest",
    ),
    "hop of a forward pass": (lambda w: w.frame(kind="predict", hop=1), "order"),
    "forward pass of a batch": (lambda w: w.frame(kind="predict"), "WrongSchema"),
    "two first messages": (
        lambda w: (
            [
                w.frame(tick=w.slot.lane.end - 1),
                w.frame(tick=w.slot.lane.end - 1, change=fill(np.float32, 0.5)),
            ]
            if w.model.micro > 1
            else w.frame(hop=9)
        ),
        "digest|order",
    ),
    "hello again": (lambda w: control.write("hello", **w.hello()), "order"),
    "welcome": (
        lambda w: control.write("welcome", run=1, tick=1, version=""),
        "order",
    ),
    "ack": (lambda w: control.write("ack", tick=1, metrics={}, lost=[]), "order"),
    "name of a path": (
        lambda w: control.write("name", tick=9, name="../../x"),
        "order",
    ),
    "name of the future": (
        lambda w: control.write("name", tick=2**62, name=NAME),
        "order",
    ),
    "two names": (
        lambda w: [
            control.write("name", tick=w.slot.lane.tick, name=name)
            for name in (NAME, OTHER_NAME)
        ],
        "digest|order",
    ),
    "kept path": (
        lambda w: control.write("kept", tick=w.slot.lane.tick, name="../../x"),
        "order",
    ),
    "kept absolute path": (
        lambda w: control.write("kept", tick=w.slot.lane.tick, name="/etc/passwd"),
        "order",
    ),
    "kept name with a line": (
        lambda w: control.write("kept", tick=w.slot.lane.tick, name=NAME + "\n"),
        "order",
    ),
    "kept that is not": (
        lambda w: control.write("kept", tick=w.slot.lane.tick, name="f" * 32),
        "order",
    ),
    "durable ahead": (lambda w: control.write("durable", step=9, tick=99), "order"),
    "durable behind": (lambda w: control.write("durable", step=0, tick=0), "order"),
    "shape not allowed": (
        lambda w: shape({"x": np.zeros((9, 6), "f4")}),
        "WrongSchema",
    ),
    "shape of doubles": (
        lambda w: shape({"x": np.zeros((8, 6), "f8")}),
        "WrongSchema",
    ),
    "shape of nothing": (lambda w: shape({}), "WrongSchema"),
    "shape with more": (lambda w: shape({**BATCH, "more": BATCH["x"]}), "WrongSchema"),
    "shape that cannot be traced": (
        lambda w: shape({**BATCH, "target": {"y": np.zeros(5), "n_valid": BATCH["x"]}}),
        "WrongSchema",
    ),
    "shape of targets that are one array": (
        lambda w: shape({**BATCH, "target": BATCH["x"]}),
        "WrongSchema",
    ),
    "deep shape": (
        lambda w: control.write(
            "shape", batch=Schema.of({**BATCH, "target": DEEP}).to_bytes()
        ),
        "WrongSchema",
    ),
    "shape with spaces": (
        lambda w: control.write(
            "shape", batch=b"  " + Schema.of({"x": BATCH["x"]}).to_bytes()
        ),
        "WrongSchema",
    ),
    "shape with a lone surrogate": (
        lambda w: control.write("shape", batch=b'[["\\ud800","float32",[1],false]]'),
        "WrongSchema",
    ),
    "shape that is a pickle": (
        lambda w: control.write("shape", batch=pickle.dumps(Trap())),
        "WrongSchema",
    ),
    "pickle": (lambda w: pickle.dumps(Trap()) + bytes(100), "NotAFrame"),
    "pickle as control": (
        lambda w: control.MAGIC + pickle.dumps(Trap()),
        "BadControl",
    ),
    "pickle as a frame": (
        lambda w: seal(w.frame()[: frame.HEAD.size] + pickle.dumps(Trap())),
        "Truncated",
    ),
    "array of 2^32": (
        lambda w: control.MAGIC + b"\xdd\xff\xff\xff\xff",
        "BadControl",
    ),
    "map of 2^32": (
        lambda w: control.MAGIC + b"\x92\xa5shape\xdf\xff\xff\xff\xff",
        "BadControl",
    ),
    "bytes of 2^32": (
        lambda w: control.MAGIC + b"\x92\xa5shape\x81\xa5batch\xc6\xff\xff\xff\xff",
        "BadControl",
    ),
    "nested": (lambda w: control.MAGIC + b"\x91" * 1000 + b"\x01", "BadControl"),
    "nested to the end": (lambda w: control.MAGIC + b"\x91" * 10**6, "BadControl"),
    "extension": (
        lambda w: packed("shape", {"batch": msgpack.ExtType(5, b"x")}),
        "BadControl",
    ),
    "timestamp": (
        lambda w: packed("shape", {"batch": msgpack.Timestamp(1, 1)}),
        "BadControl",
    ),
    "number as a key": (lambda w: packed("shape", {1: b""}), "BadControl"),
    "bytes as a key": (lambda w: packed("shape", {b"batch": b""}), "BadControl"),
    "bool for a number": (lambda w: packed("saved", {"tick": True}), "BadControl"),
    "negative": (lambda w: packed("durable", {"step": -1, "tick": 0}), "BadControl"),
    "beyond int64": (
        lambda w: packed("durable", {"step": 0, "tick": 2**64 - 1}),
        "BadControl",
    ),
    "no fields": (lambda w: packed("shape", []), "BadControl"),
    "unknown": (lambda w: packed("\x1b[2J" + "x" * 10**5, {}), "BadControl"),
    "long control": (lambda w: control.MAGIC + bytes(2**20), "BadControl"),
    "no text": (lambda w: control.MAGIC + b"\x92\xa5sh\xffpe\x80", "BadControl"),
}


def attack(world, messages, codes, *, hello=True):
    """Sends it in a session of its own; nothing may change but the refusal."""
    before = world.look()
    refused, dials = world.here.cloud.status()[0].refused, world.dials[1]
    channel = world.greet() if hello else world.here.dial()
    for message in [messages] if isinstance(messages, bytes) else messages:
        channel.send(message)
    assert refusal(channel) in codes.split("|")
    world.here.threads[-1].join(SECONDS)
    after = world.look()
    assert after[0] is before[0], "the slot was dropped"
    grown = np.subtract(after[1], before[1])
    assert not grown.any() or grown_by_right(grown), grown
    assert after[2:4] == before[2:4]
    same(after[4], before[4])
    assert world.here.cloud.status()[0].refused == refused + 1
    world.step()
    assert world.dials[1] == dials, "another edge had to dial again"


def grown_by_right(grown):
    """What of an attack was no attack: a message or a name that waits for its turn."""
    held, names, *rest, journal = (*grown[:5], grown[5])
    return held + names == 1 and not any(rest) and (journal > 0) == (names > 0)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_message_is_refused_and_changes_nothing(name, world, tmp_path):
    make, codes = ATTACKS[name]
    Trap.path = str(tmp_path / "trap")
    attack(world, make(world), codes)
    assert not os.path.exists(Trap.path)


HELLOS = {
    "no hello": (lambda w: w.frame(), "BadControl"),
    "bye": (lambda w: control.write("bye"), "order"),
    "pickle": (lambda w: pickle.dumps(Trap()), "BadControl"),
    "protocol": (lambda w: control.write("hello", **w.hello(protocol=9)), "version"),
    "version": (lambda w: control.write("hello", **w.hello(version="0")), "version"),
    "config": (lambda w: control.write("hello", **w.hello(config={})), "config"),
    "deep config": (
        lambda w: packed(
            "hello",
            w.hello(config=functools.reduce(lambda a, _: {"rank": a}, range(400), 8)),
        ),
        "BadControl",
    ),
    "config of many keys": (
        lambda w: packed(
            "hello", w.hello(config=dict.fromkeys(map(str, range(10**5))))
        ),
        "BadControl",
    ),
    "config of one huge key": (
        lambda w: packed("hello", w.hello(config={"x" * 10**6: 1})),
        "config",
    ),
    "facts of many keys": (
        lambda w: packed("hello", w.hello(facts=dict.fromkeys(map(str, range(5000))))),
        "BadControl",
    ),
    "bool for a tick": (lambda w: packed("hello", w.hello(tick=True)), "BadControl"),
    "number for a bool": (lambda w: packed("hello", w.hello(fresh=0)), "BadControl"),
    "negative tick": (lambda w: packed("hello", w.hello(tick=-1)), "BadControl"),
    "future tick": (lambda w: control.write("hello", **w.hello(tick=2**62)), "stale"),
    "past tick": (lambda w: control.write("hello", **w.hello(tick=0)), "stale"),
    "resumed elsewhere": (
        lambda w: control.write("hello", **w.hello(tick=w.slot.base - 1, resumed=True)),
        "stale",
    ),
    "fresh": (lambda w: control.write("hello", **w.hello(fresh=True)), "stale"),
    "more fields": (lambda w: packed("hello", w.hello(more=1)), "BadControl"),
    "batch that is a pickle": (
        lambda w: control.write("hello", **w.hello(batch=pickle.dumps(Trap()))),
        "WrongSchema",
    ),
    "batch, and back to the checkpoint": (
        lambda w: control.write(
            "hello", **w.hello(batch=b"[]", resumed=True, tick=w.slot.base)
        ),
        "WrongSchema",
    ),
}


@pytest.mark.parametrize("name", HELLOS)
def test_a_hostile_hello_is_refused_and_changes_nothing(name, world, tmp_path):
    make, codes = HELLOS[name]
    Trap.path = str(tmp_path / "trap")
    attack(world, make(world), codes, hello=False)
    assert not os.path.exists(Trap.path)


def test_facts_that_are_not_those_of_the_slot_are_refused(shared, here):
    """Also while the slot is in memory, where its folder is not looked at."""
    both = here(shared)
    both.cloud._build = lambda _, hello: Plan(
        "run", {"facts": hello["facts"]}, shared.made
    )
    for classes, code in ((2, None), (3, "storage"), (2, None)):
        edge = shared.edge(both.dial, facts={"classes": classes})
        if code is None:
            edge.start(shared.params, shared.state, shared.x)
        else:
            with pytest.raises(Refused) as caught:
                edge.start(shared.params, shared.state, shared.x)
            assert caught.value.code == code
        edge.close()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": True},
        {"seed": -1},
        {"seed": 2**31},
        {"seed": "../../x"},
        {"seed": None},
        {"seed": [0]},
        {"epochs": 10**6},
        {"more": {"a": [1, 2]}},
        {b"bytes": 1},
    ],
    ids=str,
)
def test_an_experiment_refuses_an_odd_config(change):
    one = Experiment(task="stsb")
    hello = {"config": {**agreed(one, 0), **change}, "facts": {}, "batch": b"[]"}
    with pytest.raises(Refused) as caught:
        build_experiment(one)(0, hello)
    assert caught.value.code == "config"


def test_shapes_are_bounded_in_number_and_depth():
    shapes = Shapes()
    for number in range(MOST):
        shapes.add(Schema.of({"x": np.zeros(number)}).to_bytes(), lambda spec: None)
    shapes.add(Schema.of({"x": np.zeros(1)}).to_bytes(), lambda spec: None)  # known
    with pytest.raises(WrongSchema, match=f"at most {MOST}"):
        shapes.add(Schema.of({"x": np.zeros(MOST)}).to_bytes(), lambda spec: None)
    with pytest.raises(WrongSchema, match="nested dicts"):
        text = Schema.of({"x": DEEP}).to_bytes()
        Shapes().add(text, lambda spec: None)


# Pieces.


def test_pieces_that_never_end_are_bounded():
    joiner = Joiner(10**5)
    tracemalloc.start()
    with pytest.raises(BadPiece, match="at most 100000"):
        while True:
            joiner.add(MORE + b"ab")  # short ones: an object for each would cost 20x
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 10**5


@pytest.mark.parametrize(
    "piece", [b"", MORE, b"\2abc", b"\xff", b"spJX", pickle.dumps(1)], ids=repr
)
def test_a_piece_that_cannot_be_is_refused(piece):
    with pytest.raises(BadPiece):
        Joiner(100).add(piece)


def test_a_mailbox_holds_no_more_than_it_may():
    box, count = Mailbox(10**4), 0

    def fill():
        nonlocal count
        with pytest.raises(Closed):
            while True:
                box.put(b"")  # even nothing is an object
                count += 1

    thread = threading.Thread(target=fill)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive() and count == 100
    box.get()
    thread.join(0.1)
    assert count == 101
    with pytest.raises(TimeoutError):
        box.put(b"", 0.01)
    box.end()
    thread.join(SECONDS)
    assert not thread.is_alive()
    one = Mailbox(10)
    one.put(bytes(10**5))  # alone, whatever its size
    assert len(one.get(0)) == 10**5
    with pytest.raises(TimeoutError):
        one.get(0)


# Over a real stream.


class Raw:
    """A stream to a server, of any pieces."""

    def __init__(self, port, pieces, token="t" * 16):
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        method = self.channel.stream_stream(PATH)
        self.call = method(iter(pieces), metadata=bearer(token))

    def refusal(self):
        """The code of the refusal, or of gRPC."""
        joiner = Joiner(2**20)
        try:
            for piece in self.call:
                data = joiner.add(piece)
                if control.read(data).kind == "refused":
                    return control.read(data).fields["code"]
        except grpc.RpcError as error:
            return error.code().name
        finally:
            self.call.cancel()
            self.channel.close()


@pytest.fixture
def port(world):
    digest = hashlib.sha256(b"t" * 16).hexdigest()
    guard = Guard({digest: 0}, client_certificates=False)
    server = Server(world.here.cloud, "127.0.0.1:0", guard, max_message_bytes=2**20)
    yield server.port
    server._server.stop(None).wait()  # the cloud goes on


def endless():
    while True:
        yield MORE + bytes(2**16)


STREAMS = {
    "never ends": (lambda w: endless(), "BadPiece"),
    "empty pieces": (lambda w: [MORE] * 10, "BadPiece"),
    "no mark": (lambda w: [b"\2"], "BadPiece"),
    "no piece": (lambda w: [b""], "BadPiece"),
    "huge piece": (lambda w: [LAST + bytes(2**22)], "RESOURCE_EXHAUSTED"),
    "empty message": (lambda w: [LAST], "BadControl"),
    "pickle": (lambda w: [LAST + pickle.dumps([1])], "BadControl"),
    "frame first": (lambda w: list(chunks(w.frame())), "BadControl"),
    "nan": (
        lambda w: [
            *chunks(control.write("hello", **w.hello())),
            *chunks(w.frame(change=fill(np.float32, np.nan))),
        ],
        "NonFinite",
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_hostile_stream_is_refused(name, world, port):
    before = world.look()
    pieces, code = STREAMS[name]
    assert Raw(port, pieces(world)).refusal() == code
    after = world.look()
    assert after[0] is before[0] and after[1:4] == before[1:4]
    same(after[4], before[4])
    world.step()


@pytest.mark.parametrize("token", ["", "x" * 16, "t" * 15, "t" * 600, "../../x"])
def test_a_stranger_never_reaches_the_cloud(token, world, port):
    refused = world.here.cloud.status()[0].refused
    raw = Raw(port, [LAST + control.write("hello", **world.hello())], token)
    assert raw.refusal() == "UNAUTHENTICATED"
    assert world.here.cloud.status()[0].refused == refused
    world.step()


def test_sessions_that_say_nothing_are_bounded(world):
    """They hold a thread each, and one edge must not take those of the others."""
    silent = [world.here.dial() for _ in range(CALLERS - 1)]  # and the honest one
    late = world.here.dial()
    assert refusal(late) == "busy"
    assert world.here.cloud._places[1].callers == 1
    for channel in silent:
        channel.close()
    for thread in world.here.threads[-CALLERS:]:
        thread.join(SECONDS)
    world.step()


# A malicious cloud.


class Liar:
    """A channel to a cloud that does something to each message of a kind."""

    def __init__(self, channel, lie):
        self.channel, self.lie = channel, lie
        self.send, self.close = channel.send, channel.close

    def receive(self, timeout=None):
        return self.lie(self.channel.receive(timeout))


def kind_of(data):
    control_kind = control.is_control(data) and control.read(data).kind
    return control_kind or frame.peek(data).kind


def on(kind, change):
    return lambda data: change(data) if kind_of(data) == kind else data


def changed(data, **leaves):
    """A frame with other leaves, and all else right."""
    header = frame.peek(data)._asdict()
    header.pop("schema")
    return frame.write(Schema.of(leaves), leaves, **header)


def with_byte(data, place, value):
    """A frame with other bytes in its body."""
    value = np.asarray(value).tobytes()
    body = data[: -frame.DIGEST_BYTES]
    place = len(body) - len(value) if place < 0 else place
    return seal(body[:place] + value + body[place + len(value) :])


FIRST = frame.HEAD.size
LIES = {
    "other run": (on("train", lambda d: with_head(d, run=1)), Refused, "slot"),
    "other slot": (on("train", lambda d: with_head(d, slot=7)), Refused, "slot"),
    "other tick": (on("train", lambda d: with_head(d, tick=9)), ConnectionError, ""),
    "other hop": (on("train", lambda d: with_head(d, hop=3)), ConnectionError, ""),
    "other kind": (on("train", lambda d: with_head(d, kind=b"x")), ConnectionError, ""),
    "unknown schema": (
        on("train", lambda d: with_head(d, schema=b"schema!?")),
        WrongSchema,
        "",
    ),
    "other leaves": (on("train", lambda d: changed(d, **NUMBERS)), WrongSchema, ""),
    "cut": (on("train", lambda d: d[:-1]), FrameError, ""),
    "longer": (on("train", lambda d: d + b"x"), frame.TooLarge, ""),
    "a bit": (on("train", flip), frame.WrongDigest, ""),
    "nan as a gradient": (
        on("train", lambda d: with_byte(d, -1, BF16(np.nan))),
        frame.NonFinite,
        "",
    ),
    "nan as a weight": (
        on("weights", lambda d: with_byte(d, FIRST, np.float32(np.nan))),
        frame.NonFinite,
        "",
    ),
    "long weights": (on("weights", lambda d: d + bytes(10**7)), frame.TooLarge, ""),
    "other weights": (on("weights", lambda d: changed(d, **NUMBERS)), WrongSchema, ""),
    "no frame": (on("train", lambda d: b"junk"), ConnectionError, ""),
    "pickle": (on("weights", lambda d: pickle.dumps(Trap())), ConnectionError, ""),
    "ack of the past": (
        on("ack", lambda d: control.write("ack", tick=0, metrics={}, lost=[])),
        ConnectionError,
        "",
    ),
    "ack of the future": (
        on("ack", lambda d: control.write("ack", tick=2**62, metrics={}, lost=[])),
        ConnectionError,
        "",
    ),
    "ack of texts": (
        on(
            "ack",
            lambda d: packed("ack", {"tick": 3, "metrics": {"loss": "x"}, "lost": []}),
        ),
        ConnectionError,
        "",
    ),
    "refused in color": (
        on(
            "ack", lambda d: control.write("refused", code="\x1b[2J", text="\x1b[31m\n")
        ),
        Refused,
        " [2J",
    ),
    "welcome again": (
        on("ack", lambda d: control.write("welcome", run=1, tick=0, version="")),
        ConnectionError,
        "",
    ),
    "no welcome": (
        on("welcome", lambda d: control.write("saved", tick=0)),
        Refused,
        "order",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_of_the_cloud_ends_the_edge_with_an_error(name, shared, here, tmp_path):
    lie, error, code = LIES[name]
    Trap.path = str(tmp_path / "trap")
    both = here(shared)
    hurry = {"deadline_seconds": 0.3, "patience_seconds": 0.5}
    hurry = hurry if error is ConnectionError else {}
    edge = shared.edge(lambda: Liar(both.dial(), lie), **hurry)
    with pytest.raises(error) as caught:
        run = edge.start(shared.params, shared.state, shared.x)
        run_all(edge, run, batches(3, micro=2))
    if code:
        assert caught.value.code == code
    assert str(caught.value).isprintable()
    assert not os.path.exists(Trap.path)
    edge.close()


def test_a_cloud_that_begins_another_run_is_refused(shared, here):
    both, welcomes = here(shared), []

    def lie(data):
        if kind_of(data) == "welcome":
            welcomes.append(data)
            if len(welcomes) > 1:
                return control.write("welcome", run=5, tick=0, version="")
        return data

    edge = shared.edge(lambda: Liar(both.dial(), lie))
    run = edge.start(shared.params, shared.state, shared.x)
    edge._outbox._channel.close()
    with pytest.raises(Refused, match="another run"):
        run_all(edge, run, batches(1, micro=2))
    edge.close()


def test_a_cloud_that_only_talks_is_left_and_costs_no_memory(shared):
    """Well-formed messages without end, and never the one that was asked for."""
    said = 0

    def talk(channel, run):
        nonlocal said
        schema = Schema.of(NUMBERS)
        where = {"run": run, "slot": 0, "hop": 0}
        try:
            while True:
                said += 1
                for message in (
                    control.write("ack", tick=said, metrics={f"m{said}": 1.0}, lost=[]),
                    control.write("saved", tick=said),
                    frame.write(schema, NUMBERS, kind="train", tick=said, **where),
                    frame.write(
                        schema, NUMBERS, kind=f"k{said % 10**6}", tick=0, **where
                    ),
                ):
                    channel.send(message)
        except Closed:
            pass

    threads = []

    def dial():
        mine, theirs = pipe()
        mine._inbox._max_bytes = 10**4  # as a stream over gRPC has a bound
        theirs.send(control.write("welcome", run=7, tick=0, version=""))
        thread = threading.Thread(target=talk, args=(theirs, 7))
        threads.append(thread)
        thread.start()
        return mine

    edge = shared.edge(dial, deadline_seconds=0.5, patience_seconds=6.0)
    tracemalloc.start()
    with pytest.raises(ConnectionError, match="has not answered"):
        edge.start(shared.params, shared.state, shared.x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    outbox = edge._outbox
    assert said > 1000 and not outbox._arrived and len(outbox._ack[1]) <= 1
    assert len(edge.meter.rows()) <= 6  # by kind, of which there are few
    assert peak < 2**24
    edge.close()
    for thread in threads:
        thread.join(SECONDS)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_slot_that_went_back_survives_a_crash(resumed, here):
    """A journal that begins anew needs the shapes, or nothing in it can be read."""
    model = Model(**MODELS["rough"])
    steps = batches(4, micro=2)
    local = model.local()
    want, _ = run_all(local, local.start(model.params, model.state, model.x), steps)
    both = here(model)
    edge = model.edge(both.dial)
    run = edge.start(model.params, model.state, model.x)
    if resumed:
        run, _ = run_all(edge, run, steps[:1])
        edge.saved(run)
    kept = jax.device_get(run.edge)
    tick = run.tick if resumed else None
    at = 1 if resumed else 0
    run_all(edge, run, steps[at:3])
    both.channels[-1].close()

    edge = model.edge(both.dial)
    run = edge.start(model.params, model.state, model.x, tick=tick)
    if resumed:
        run = run._replace(edge=jax.tree.map(jax.numpy.asarray, kept))
    run, _ = run_all(edge, run, steps[at:3])
    both.crash()
    run, _ = run_all(edge, run, steps[3:])
    same(run.edge, want.edge)
    edge.close()
