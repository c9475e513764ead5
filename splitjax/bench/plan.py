"""A planned cut of uneven models against the even one, foretold and measured.

A measured makespan is what the schedule takes with each operation's time alone: what
devices of their own would need that are as fast as the cores of this process are for
one of them. Virtual devices share those cores, so a whole step shows no cut's gain; its
row shows what it takes here.
"""

import dataclasses
import functools

import jax
import numpy as np

from splitjax.core.split import Loss
from splitjax.core.stage import Stage, join
from splitjax.core.tree import Tree
from splitjax.metrics.loss import cross_entropy
from splitjax.metrics.perplexity import next_symbol
from splitjax.models.decoder import decoder
from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.mlp import mlp
from splitjax.parallel.border import borders
from splitjax.parallel.cost import block_costs
from splitjax.parallel.machine import Machine
from splitjax.parallel.partition import even
from splitjax.parallel.stages import Plan, staged
from splitjax.studies.plan.measure import matrix_rate, ready, stream_rate
from splitjax.studies.plan.subject import Subject
from splitjax.studies.plan.times import get_devices, operations
from splitjax.train.timing import Part, Row, Watch, rows


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the models and of their pipelines.

    Attributes:
      stages: of a pipeline.
      micro: micro-batches in a step.
      rows: of one micro-batch of texts.
      tokens: of a text.
      decoder: whose head is many times as dear as a layer.
      examples: of one micro-batch of the perceptron.
      widths: of its layers, the dear ones in its middle; the first is the input's, too.
    """

    stages: int
    micro: int
    rows: int
    tokens: int
    decoder: DecoderConfig
    examples: int
    widths: tuple[int, ...]


SIZES = Sizes(
    stages=4,
    micro=8,
    rows=8,
    tokens=32,
    decoder=DecoderConfig(
        vocab=8192, width=128, heads=4, kv_heads=4, layers=6, ffn=512, tied=False
    ),
    examples=256,
    widths=(512, 512, 512, 512, 1024, 1024, 512, 512),
)


def wide_head() -> Subject:
    """A decoder of equal layers under a wide head."""
    chance, count = np.random.default_rng(0), SIZES.rows
    ids = chance.integers(0, SIZES.decoder.vocab, (count, SIZES.tokens + 1), np.int32)
    x = {"ids": ids[:, :-1], "mask": np.ones((count, SIZES.tokens), bool)}
    target = {"y": ids[:, 1:], "n_valid": np.int32(count)}
    return _subject(decoder(SIZES.decoder), next_symbol, x, target)


def wide_middle() -> Subject:
    """A perceptron whose layers in the middle are wider."""
    count, width = SIZES.examples, SIZES.widths[0]
    x = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    y = np.arange(count, dtype=np.int32) % SIZES.widths[-1]
    return _subject(
        mlp(SIZES.widths), cross_entropy, x, {"y": y, "n_valid": np.int32(count)}
    )


def _subject(stages: tuple[Stage, ...], loss: Loss, x: Tree, target: Tree) -> Subject:
    params, state = join(stages).init(jax.random.key(0), x)
    return Subject(stages, params, state, loss, x, target)


def planned(about: Subject, machine: Machine) -> dict[str, Plan]:
    """The plan of a model's stages, and the one of equal numbers of blocks."""
    parts = about.stages, about.params, about.state, about.x
    blocks, between = block_costs(*parts), borders(*parts)
    cuts = {"planned": None, "even": even(len(blocks), SIZES.stages)}
    return {
        name: staged(
            blocks, between, machine, micro=SIZES.micro, pipe=SIZES.stages, cuts=at
        )
        for name, at in cuts.items()
    }


def compared(name: str, about: Subject, watch: Watch) -> list[Row]:
    """The rows of one model: makespans foretold and measured, and whole steps here.

    Args:
      name: of the model, in the rows.
      about: the model.
      watch: what times it; its clock also tells the speed of a device.
    """
    speed, stream = matrix_rate(clock=watch.clock), stream_rate(clock=watch.clock)
    machine = Machine(speed, stream_bytes_per_second=stream)
    plans = {
        f"{name}, {how} after {', '.join(map(str, plan.cuts))}": plan
        for how, plan in planned(about, machine).items()
    }
    pipes = {cut: ready(plan, about) for cut, plan in plans.items()}
    each = operations(pipes, rounds=watch.rounds, clock=watch.clock)
    steps = watch({cut: pipe.step for cut, pipe in pipes.items()})
    foretold = {cut: [float(plan.seconds)] for cut, plan in plans.items()}
    measured = {cut: [float(one.timeline.makespan)] for cut, one in each.items()}
    _, reference = plans
    return [
        {**row, "name": f"{row['name']}: {what}"}
        for what, times in (
            ("foretold makespan", foretold),
            ("measured makespan", measured),
            ("a step on shared cores", steps),
        )
        for row in rows(times, reference, {})
    ]


def _part(name: str, make, watch: Watch) -> list[Row]:
    if not get_devices(SIZES.stages, f"the plan of {name}"):
        return []
    return compared(name, make(), watch)


# By the name that --only chooses.
PARTS: dict[str, Part] = {
    f"pipeline/plan, {name}": functools.partial(_part, name, make)
    for name, make in (("wide head", wide_head), ("wide middle", wide_middle))
}
