"""Mutations that keep the grammar: each is refused by name, and none leaves a trace.

The generator knows the real format. It changes a field of a header, a count, a body, a
row of a schema or a field of a control message, and then makes the digest fit, so that
what it changed reaches the check that is meant for it.
"""

import gc
import hashlib
import json
import os
import pathlib
import tracemalloc

import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest

from splitjax.core.message import Sized
from splitjax.runtime import control, frame
from splitjax.runtime.channel import BadPiece, Joiner, chunks
from splitjax.runtime.control import Refused
from splitjax.runtime.memories import without_ids
from splitjax.runtime.schema import DTYPES, FrameError, Schema, WrongSchema
from splitjax.runtime.shapes import Shapes
from splitjax.runtime.slot import Slot
from tests.runtime.conftest import ROUGH, Here, Model, batches

MODEL = dict(link=ROUGH, places=("dense_0", "dense_1"), frozen=1, micro=2)
CODES = {"run", "stale", "digest", "order"}
NAMES = [f"{number:032x}" for number in range(6)]  # of the ticks, where they have one
FIELDS = ("magic", "version", "hop", "kind", "run", "slot", "tick", "schema")
TREE = {
    "codes": Sized(np.arange(12, dtype=np.uint8).reshape(6, 2), np.int32(6)),
    "scale": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "h": np.ones((2, 3), np.float32),
    "flag": np.array([True, False, True]),
    "rows": Sized(np.ones((4, 2), np.float32), np.int32(4)),
}
SCHEMA = Schema.of(TREE)
# Objects of Python and NumPy: 78,000 messages that each left seven bytes leave more.
# (What was measured is 4 kB for each 10,000: caches of JAX and of short integers.)
LEAK_BYTES = 2**19
# The whole process, since XLA allocates by itself: what its arenas may keep meanwhile.
RESIDENT_BYTES = 2**24


class Tapped:
    """A channel that remembers what went up and came down."""

    def __init__(self, channel, up, down):
        self.channel, self.up, self.down = channel, up, down
        self.close = channel.close

    def send(self, message):
        self.up.append(bytes(message))
        self.channel.send(message)

    def receive(self, timeout=None):
        self.down.append(self.channel.receive(timeout))
        return self.down[-1]


def resident():
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def seal(body):
    return body + hashlib.blake2b(body, digest_size=frame.DIGEST_BYTES).digest()


def head_of(data):
    return dict(zip(FIELDS, frame.HEAD.unpack_from(data), strict=True))


def with_head(data, **changes):
    head = frame.HEAD.pack(*{**head_of(data), **changes}.values())
    return seal(head + data[frame.HEAD.size : -frame.DIGEST_BYTES])


class Target:
    """A slot in the middle of a step, all that was said to it, and what is to come."""

    def __init__(self, folder):
        self.model = Model(**MODEL)
        up, down = [], []
        here = Here(self.model, folder / "first")
        edge = self.model.edge(lambda: Tapped(here.dial(), up, down))
        edge.keep(Kept())
        run = edge.start(self.model.params, self.model.state, self.model.x)
        for number, step in enumerate(batches(3, micro=2)):
            run, _ = edge.step(run, step, names=NAMES[2 * number : 2 * number + 2])
            if not number:
                edge.saved(run)
        edge.predict(run, self.model.x)
        edge.close()
        here.close()
        made = self.model.made()._replace(check=exactly)
        self.slot = Slot(folder / "second", made, number=0, config={})
        self.run = self.slot.lane.run
        self.hello = control.read(up[0]).fields
        list(self.slot.welcome(self.hello))
        said = [self.mine(data) for data in up[1:]]
        self.later = [d for d in said if frame_tick(d) >= 4 and kind(d) == "train"][1:]
        self.predict = next(d for d in said if kind(d) == "predict")
        self.said, self.answered = [], {}
        for data in said:
            if data == self.later[0] or kind(data) in ("predict", "bye"):
                break
            self.said.append(data)
            answer = list(self.slot.handle(data))
            if not control.is_control(data) and frame_tick(data) >= 2:
                self.answered[data] = answer
        self.frames = [d for d in self.said if kind(d) == "train"] + [self.predict]
        self.want = {frame_key(d): self.mine(d) for d in down if kind(d) == "train"}
        lane = self.slot.lane
        at = lane._at(4)
        spec = next(lane.shapes.train())
        exchanges = lane._programs.exchanges(*lane._specs, spec, at)
        self.schemas = [exchange.up for exchange in exchanges]

    def mine(self, data):
        """The same message, as of this run."""
        return data if control.is_control(data) else with_head(data, run=self.run)

    def sizes(self):
        slot, programs = self.slot, self.slot.lane._programs
        held = slot._held, slot._names, slot._shapes, slot._answers, slot._frames
        caches = programs._schemas, programs._exchanges, programs._compiled
        return [len(a) for a in (*held, *caches)], self.journal()

    def journal(self):
        return self.slot._ledger._journal.size_bytes

    def is_new(self, data):
        """Whether this is a right message whose turn it is: to take it is no fault."""
        try:
            if control.is_control(data):
                said, fields = control.read(data)
                due = fields["tick"] in (4, 5) and fields["name"] in NAMES
                return said in ("kept", "name") and due
            header = frame.peek(data)
            place = header.run, header.slot, header.kind
            if place != (self.run, 0, "train") or header.tick not in (4, 5):
                return False
            frame.read(self.schemas[header.hop], data, check_finite=True)
            return (header.tick, header.hop) not in self.slot._answers
        except (FrameError, KeyError, IndexError):
            return False


class Kept(dict):
    """What an edge remembers of what is kept: here nothing, so that all is sent."""

    def get(self, name):
        return None

    def put(self, name, step, data): ...


def exactly(spec):
    """The check of shapes: none but those of the data, as experiments have it."""
    want = jax.tree.map(lambda a: (np.shape(a), np.asarray(a).dtype), BATCH)
    found = jax.tree.map(lambda a: (a.shape, a.dtype), spec)
    if found not in (want, {"x": want["x"]}):
        raise WrongSchema("another batch")


BATCH = without_ids(batches(1)[0][0])


def kind(data):
    return (
        control.read(data).kind if control.is_control(data) else frame.peek(data).kind
    )


def frame_key(data):
    header = frame.peek(data)
    return header.tick, header.hop


def frame_tick(data):
    return -1 if control.is_control(data) else frame.peek(data).tick


class Mutations:
    """A generator of messages that are almost right."""

    def __init__(self, target, seed):
        self.target, self.random = target, np.random.default_rng(seed)
        schemas = [*target.schemas, SCHEMA]
        self.pools = {
            "magic": [frame.MAGIC, b"spJC", b"spJL", bytes(4)],
            "version": [0, 1, 2, 2**15, 2**16 - 1],
            "hop": [0, 1, 2, 3, 255, 2**15, 2**16 - 1],
            "kind": [
                b"train",
                b"predict",
                b"weights",
                b"",
                b"\x07",
                b"t\0rain",
                b"e" * 8,
            ],
            "run": [target.run, target.run ^ 1, 0, 2**63, 2**64 - 1],
            "slot": [0, 1, 2**31 - 1, 2**31, 2**32 - 1],
            "tick": [*range(8), 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1],
            "schema": [*(s.hash for s in schemas), bytes(8), b"\xff" * 8],
        }
        self.values = [
            *(0, 1, 4, 5, 6, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 1),
            *(True, False, None, 0.5, float("nan"), "", "x", *NAMES[:2], "../../x"),
            *("\x1b[2J", "é" * 40, NAMES[0] + "\n", b"", b"x" * 100, [], [1, [2]], {}),
            *({"a": {"b": [1]}}, {"loss": 1.0}, {"loss": "x"}, {"seed": True}),
            *(msgpack.ExtType(1, b"x"), msgpack.Timestamp(1, 2)),
            *(self.text(BATCH), self.text({"x": BATCH["x"]})),
        ]

    def text(self, tree):
        return Schema.of(tree).to_bytes()

    def pick(self, pool):
        return pool[self.random.integers(len(pool))]

    def head(self, data):
        names = self.random.choice(FIELDS, self.random.integers(1, 3), replace=False)
        return with_head(data, **{name: self.pick(self.pools[name]) for name in names})

    def body(self, data):
        """Bytes of the body, or how many there are."""
        random, start = self.random, frame.HEAD.size
        body = bytearray(data[: -frame.DIGEST_BYTES])
        what = random.integers(6)
        place = int(random.integers(start, max(len(body), start + 1)))
        if what == 0:
            del body[place:]
        elif what == 1:
            body += bytes(int(self.pick([1, 2, 4, 16, 1000])))
        elif what == 2:
            special = self.pick(
                [b"\xff" * 4, b"\0\0\xc0\x7f", b"\x80\x7f", b"\x80\xff"]
            )
            body[place : place + len(special)] = special
        elif what == 3:
            body[place : place + 1] = bytes([random.integers(256)])
        elif what == 4:
            del body[place : place + int(self.pick([1, 2, 4, 16]))]
        else:
            number = self.pick([0, 1, 3, 6, 7, 2**16, 2**31, 2**32 - 1])
            body[start : start + 4] = int(number).to_bytes(4, "little")
        if random.random() < 0.1:
            return bytes(body) + data[-frame.DIGEST_BYTES :]
        return seal(bytes(body))

    def frame(self, data):
        what = self.random.random()
        if what < 0.05:
            return data
        if what < 0.5:
            return self.head(data)
        if what < 0.9:
            return self.body(data)
        return self.body(self.head(data))

    def control(self):
        """A control message with other fields, or other bytes."""
        random, said = self.random, self.pick(list(control.FIELDS))
        types = {int: 4, str: NAMES[0], bytes: b"", bool: False, dict: {}, list: []}
        fields = {name: types[kind] for name, kind in control.FIELDS[said].items()}
        for _ in range(random.integers(3)):
            what = random.integers(6)
            if what == 0 and fields:
                fields.pop(self.pick(list(fields)))
            elif what == 1:
                fields[self.pick(["tick", "name", "evil", "x" * 300])] = self.value()
            elif fields:
                fields[self.pick(list(fields))] = self.value()
        if random.random() < 0.05:
            said = self.value()
        whole = self.pick(
            [[said, fields]] * 20 + [[said], fields, [said, fields, 1], said]
        )
        try:
            data = control.MAGIC + msgpack.packb(whole)
        except (OverflowError, TypeError, ValueError):
            data = control.MAGIC + b"\x92\xa1x"
        if random.random() < 0.2:
            data = self.bytes(data)
        return data

    def value(self):
        return self.pick(self.values)

    def bytes(self, data):
        """Some bytes of MessagePack changed, most often into a header of something."""
        random, data = self.random, bytearray(data)
        place = int(random.integers(4, max(5, len(data))))
        claim = self.pick(
            [
                b"\xdd\xff\xff\xff\xff",
                b"\xdf\x7f\xff\xff\xff",
                b"\xdc\xff\xff",
                b"\xc7\xff",
            ]
            + [b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x91" * 600, b"\xc1"]
        )
        if random.random() < 0.5:
            data[place : place + 1] = claim
        else:
            data[place : place + 1] = bytes([random.integers(256)])
        return bytes(data if random.random() < 0.7 else data[:place])

    def schema(self):
        """The text of a schema with other rows."""
        random = self.random
        rows = json.loads(self.text(self.pick([BATCH, {"x": BATCH["x"]}, TREE])))
        for _ in range(random.integers(1, 3)):
            what = random.integers(8)
            row = rows[random.integers(len(rows))] if rows else []
            row = row if isinstance(row, list) else []
            if what == 0 and rows:
                del rows[random.integers(len(rows))]
            elif what == 1:
                rows.append(list(row))
            elif what == 2:
                rows.append(self.pick([[], None, [1, 2, 3, 4], "x", {"a": 1}, [[]]]))
            elif what == 3 and len(row) == 4:
                row[0] = self.pick(
                    ["", "/", "x/y", "x/x", "a/" * 500, "\ud800", "..", 3]
                )
            elif what == 4 and len(row) == 4:
                row[1] = self.pick([*DTYPES, "object", "O", "complex64", "", None, 4])
            elif what == 5 and len(row) == 4 and isinstance(row[2], list):
                sizes = [0, 1, 7, 2**31, 2**47, 2**48, -1, 1.5, True, "8", None, [8]]
                row[2].insert(0, self.pick(sizes))
            elif what == 6 and len(row) == 4:
                row[2] = self.pick([[], [1] * 33, None, 3, {}, [2**47] * 32])
            elif len(row) == 4:
                row[3] = self.pick([True, False, 0, 1, None, "true"])
        text = json.dumps(rows, separators=(",", ":")).encode()
        if random.random() < 0.1:
            cut = int(random.integers(len(text)))
            text = (
                text[:cut] + self.pick([b"", b"[", b"\xff", b"[" * 2000]) + text[cut:]
            )
        return text

    def pieces(self):
        pieces = list(chunks(bytes(int(self.random.integers(40))), 7))
        place = self.random.integers(len(pieces))
        pieces[place] = self.pick(
            [b"", b"\0", b"\2x", b"\0" + bytes(90), b"\1" + bytes(90), pieces[place]]
        )
        return pieces


class Judge:
    """Gives each mutation to what it is for, and says whether the outcome is right."""

    def __init__(self, target, seed):
        self.target, self.make = target, Mutations(target, seed)
        self.outcomes: dict[str, int] = {}

    def one(self):
        what = self.make.random.random()
        if what < 0.45:
            self.slot(self.make.frame(self.make.pick(self.target.frames)))
        elif what < 0.6:
            self.read(self.make.frame(DATA))
        elif what < 0.85:
            self.slot(self.make.control())
        elif what < 0.9:
            text = self.make.schema()
            self.slot(control.write("shape", batch=text))
        elif what < 0.97:
            self.shapes(self.make.schema())
        else:
            self.joiner(self.make.pieces())

    def note(self, outcome):
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def slot(self, data):
        target = self.target
        if target.is_new(data):
            return self.note("new")
        before = target.journal()
        try:
            out = list(target.slot.handle(data))
        except (FrameError, Refused) as error:
            assert type(error) is not FrameError
            if isinstance(error, Refused):
                assert error.code in CODES, error
            assert target.journal() == before, error
            return self.note(getattr(error, "code", type(error).__name__))
        if control.is_control(data):
            said, fields = control.read(data)
            assert said in ("shape", "name") and not out, data
            if said == "name":
                assert fields["tick"] < 6
            else:
                assert fields["batch"] in target.slot._shapes
                assert target.journal() == before, "they are known"
            return self.note(f"accepted {said}")
        if data in target.answered:
            want = target.answered[data]
            assert [a for a in out if not control.is_control(a)] == [
                a for a in want if not control.is_control(a)
            ]
            assert {a for a in out if control.is_control(a)} <= {target.slot._ack[1]}
            return self.note("answered again")
        header = frame.peek(data)
        assert (header.kind, header.run, header.slot) == ("predict", target.run, 0)
        (answer,) = out
        assert frame.peek(answer)[:5] == header[:5]
        self.note("predicted")

    def read(self, data):
        try:
            header, tree = frame.read(SCHEMA, data, check_finite=True)
        except FrameError as error:
            assert type(error) is not FrameError
            return self.note(type(error).__name__)
        # What is taken is what would be written: there is one form of each message.
        where = header._asdict()
        where.pop("schema")
        assert frame.write(SCHEMA, tree, **where) == data
        self.note("read")

    def shapes(self, text):
        shapes = Shapes()
        try:
            shapes.add(text, exactly)
        except WrongSchema:
            return self.note("shape refused")
        assert list(shapes) == [text]
        self.note("shape")

    def joiner(self, pieces):
        joiner = Joiner(64)
        try:
            for piece in pieces:
                whole = joiner.add(piece)
                assert whole is None or len(whole) <= 64
        except BadPiece:
            return self.note("BadPiece")
        self.note("joined")


DATA = frame.write(SCHEMA, TREE, kind="up", run=7, slot=2, tick=3, hop=1)


@pytest.mark.parametrize(
    "count", [3_000, pytest.param(100_000, marks=pytest.mark.slow)]
)
def test_mutations_are_refused_by_name_and_leave_nothing(count, tmp_path):
    target = Target(tmp_path)
    judge = Judge(target, seed=count)
    state = jax.device_get(target.slot.lane.state)
    for _ in range(count // 5):
        judge.one()
    sizes = target.sizes()
    gc.collect()
    tracemalloc.start()
    for _ in range(count // 50):  # what the tracer itself and its first lines cost
        judge.one()
    gc.collect()
    begin, first = tracemalloc.get_traced_memory()[0], resident()
    for _ in range(count - count // 5 - count // 50):
        judge.one()
    gc.collect()
    end = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert end - begin < LEAK_BYTES
    assert resident() - first < RESIDENT_BYTES
    assert target.sizes() == sizes
    jax.tree.map(
        np.testing.assert_array_equal, state, jax.device_get(target.slot.lane.state)
    )
    assert len(judge.outcomes) > 20 and judge.outcomes["answered again"] > count / 200
    # And on it goes, as if nothing had been.
    for data in target.later:
        for answer in target.slot.handle(data):
            if not control.is_control(answer):
                assert answer == target.want[frame_key(answer)]
    assert target.slot.lane.tick == 6
    target.slot.close()


def test_shapes_that_cannot_be_traced_are_not_remembered(tmp_path):
    target = Target(tmp_path)
    slot = target.slot
    slot.lane.made = target.model.made()  # whose check looks at x alone
    before = target.sizes()
    for number in range(20):
        spec = {**BATCH, "target": {"y": np.zeros(number + 20), "n_valid": BATCH["x"]}}
        shape = control.write("shape", batch=Schema.of(spec).to_bytes())
        with pytest.raises(WrongSchema):
            list(slot.handle(shape))
    assert target.sizes() == before
    slot.close()
