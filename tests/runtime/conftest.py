"""Two halves of a small network, with every way between them that a test may want."""

import contextlib
import dataclasses
import functools
import threading

import jax
import numpy as np
import optax
import pytest

from splitjax.algorithms.split import split_learning
from splitjax.codecs import delta, quantize
from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.metrics.loss import squared_error
from splitjax.models.mlp import mlp
from splitjax.optim.clip import clip_by_global_norm
from splitjax.runtime.channel import pipe
from splitjax.runtime.cloud import Cloud, Plan
from splitjax.runtime.control import Refused
from splitjax.runtime.edge import Edge
from splitjax.runtime.lane import Made
from splitjax.runtime.local import Local
from splitjax.runtime.programs import weights_of
from splitjax.runtime.schema import WrongSchema
from splitjax.train.serve import check_labels
from tests.doubles import memory

IDENTITY = Link(chain(), chain())
ROUGH = Link(chain(quantize(8)), chain(quantize(8, rounding="stochastic")))
STATEFUL = Link(memory(), memory())
REMEMBER = Link(
    delta(quantize(2, axis="channel", power_of_two=True), check=1), quantize(4)
)
ROWS, EXAMPLES = 8, 40


def loss(y, target):
    return squared_error(y[:, 0], target)


def batches(count: int, *, micro: int = 1) -> list[list[dict]]:
    """Steps of micro-batches; the last of three is short. Examples come again."""
    steps = []
    for number in range(count):
        step = []
        for part in range(micro):
            random = np.random.default_rng([number, part])
            x = random.normal(size=(ROWS, 6)).astype(np.float32)
            valid = ROWS - (part % 3 == 2)
            target = {"y": np.sin(x).sum(-1), "n_valid": np.int32(valid)}
            ids = (5 * number + np.arange(ROWS)) % 10 + 10 * part
            ids = np.where(np.arange(ROWS) < valid, ids, -1).astype(np.int32)
            step.append({"x": x, "target": target, "ids": ids})
        total = sum(int(b["target"]["n_valid"]) for b in step)
        for b in step:
            b["weight"] = np.float32(b["target"]["n_valid"] / total)
        steps.append(step)
    return steps


@dataclasses.dataclass
class Model:
    """A network cut somewhere, and how it is trained."""

    places: tuple[str, ...] = ("dense_0",)
    link: Link = IDENTITY
    micro: int = 1
    clip: float = 0.0
    frozen: int = 0
    slot: int = 0
    width: int = 8

    def __post_init__(self):
        stages = mlp([*3 * [self.width], 1], dropout=0.2, norm=True)
        links = (self.link,) * len(self.places)
        split = Split(cut(stages, after=self.places), links, loss, self.frozen)
        tx = optax.sgd(0.05, momentum=0.9)
        if self.clip:
            tx = optax.chain(clip_by_global_norm(self.clip), tx)
        self.owners = split.cut.owners
        self.algorithm = split_learning(
            split, tx, micro=self.micro, exact_norm=bool(self.clip)
        )
        self.x = batches(1)[0][0]["x"]
        self.params, self.state = jax.jit(split.init)(jax.random.key(1), self.x)
        self.key = jax.random.key(2)

    def made(self) -> Made:
        """What a cloud builds."""
        edge, shared, slot = self.algorithm.init(self.params, self.state, self.x)
        return Made(
            self.algorithm,
            self.key,
            self.micro,
            weights_of("edge", self.owners, self.params, self.state),
            jax.eval_shape(lambda: edge),
            shared,
            slot,
            check,
            functools.partial(check_labels, (0, 0)),
            EXAMPLES,
        )

    def local(self, **kwargs) -> Local:
        """The driver of one process."""
        return Local(
            self.algorithm, self.key, slot=self.slot, examples=EXAMPLES, **kwargs
        )

    def edge(self, dial, **kwargs) -> Edge:
        """The driver of an edge."""
        return Edge(
            self.algorithm,
            self.key,
            dial,
            **{
                "micro": self.micro,
                "slot": self.slot,
                "config": {"rank": 8},
                "facts": {},
                "owners": self.owners,
                "deadline_seconds": 20.0,
                "patience_seconds": 20.0,
                "examples": EXAMPLES,
                **kwargs,
            },
        )


def check(spec) -> None:
    x = spec["x"]
    if getattr(x, "shape", None) != (ROWS, 6) or x.dtype != np.float32:
        raise WrongSchema(f"x is float32 ({ROWS}, 6), not {x}")


def build(model: Model):
    """A cloud's `build` that knows one config."""

    def plan(number, hello):
        config = hello["config"]
        if config != {"rank": 8}:
            raise Refused("config", f"rank: {config.get('rank')!r} at the edge, 8 here")
        return Plan("run", config, model.made)

    return plan


class Here:
    """A cloud in this process, and channels to it."""

    def __init__(self, model: Model, folder, **kwargs):
        self.model, self.folder, self.kwargs = model, folder, kwargs
        self.cloud = Cloud(build(model), folder, **kwargs)
        self.threads: list[threading.Thread] = []
        self.channels: list = []

    def dial(self, slot: int = 0):
        mine, theirs = pipe()
        thread = threading.Thread(target=self.cloud.serve, args=(slot, theirs))
        thread.start()
        self.threads.append(thread)
        self.channels.append(mine)
        return mine

    def crash(self):
        """Loses all that is in memory; the disk stays. Then a new cloud begins."""
        for channel in self.channels:
            channel.close()
        for thread in self.threads:
            thread.join()
        self.cloud.close()
        self.cloud = Cloud(build(self.model), self.folder, **self.kwargs)

    def close(self):
        self.cloud.close()
        for channel in self.channels:
            channel.close()
        for thread in self.threads:
            thread.join()


@pytest.fixture
def here(tmp_path):
    """A function `here(model, **kwargs)` to a cloud in this process."""
    with contextlib.ExitStack() as stack:

        def make(model: Model, **kwargs) -> Here:
            made = Here(model, tmp_path / f"cloud_{id(model)}", **kwargs)
            stack.callback(made.close)
            return made

        yield make


def run_all(driver, start, steps, **kwargs):
    """Every step; the last state and the losses."""
    run, losses = start, []
    for step in steps:
        run, metrics = driver.step(run, step, **kwargs)
        losses.append(float(metrics["loss"]))
    return run, losses


def rows_of(memories) -> dict:
    """All that is remembered, by link and example."""
    return {
        (name, number, example): (rows[example].data.tobytes(), *rows[example][1:])
        for name, stores in memories._rows.items()
        for number, rows in enumerate(stores)
        for example in rows
    }


def same(a, b) -> None:
    """All leaves are equal to the bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def remembered(edge, both) -> list[dict]:
    """The rows of an edge and of its cloud."""
    lane = both.cloud._places[edge.slot].slot.lane
    return [rows_of(edge.memories), rows_of(lane.memories)]
