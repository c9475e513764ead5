"""A perceptron in a pipeline of two stages, at the size of a figure of torch's.

Of torch's perceptron the width and the batch are known, and neither its depth nor what
a step is; here it has four equal layers, two a stage, and a step is the loss and
its gradients. Torch's figures are of another machine and stand for themselves: what can
be compared is how each goes with the number of micro-batches.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from splitjax.adapters.linen import from_linen
from splitjax.core.stage import Stage, join, repeat
from splitjax.core.tree import Tree
from splitjax.models.mlp import Layer
from splitjax.parallel.mesh import make_cloud_mesh
from splitjax.parallel.mpmd import mpmd
from splitjax.parallel.spmd import pipelined
from splitjax.studies.plan.times import Ready, get_devices, operations
from splitjax.train.timing import Part, Row, Watch, rows

STAGES = 2
WHOLE = "un-pipelined step"
# Seconds of torch pipelining in 2 gloo processes, by the kind of the schedule and n,
# its micro-batches; measured on 2 CPU cores of another machine.
PEERS = {
    ("gpipe", 1): 12.8e-3,
    ("gpipe", 4): 11.0e-3,
    ("gpipe", 8): 18.2e-3,
    ("1f1b", 4): 10.8e-3,
    ("1f1b", 8): 12.3e-3,
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the perceptron and its batch; `layers` is a choice of ours."""

    width: int = 512
    batch: int = 256
    layers: int = 4


SIZES = Sizes()


def loss(y: jax.Array, target: jax.Array) -> tuple[jax.Array, dict]:
    """The mean squared error of y (B, D), and no metrics.

    Example:
      >>> float(loss(jnp.ones((2, 3)), jnp.zeros((2, 3)))[0])
      1.0
    """
    return jnp.square(y - target).mean(), {}


def perceptron(watch: Watch) -> list[Row]:
    """Whole steps here, of both executors, and makespans of devices of their own.

    The makespan of a schedule is that of its operations, each timed alone; see
    `Operations`. A whole step is on the cores of this process, which both virtual
    devices share: what it takes beyond the un-pipelined one is the cost of the
    pipeline, of which one core gains nothing back.
    """
    if not get_devices(STAGES, "a perceptron in a pipeline"):
        return []
    steps, pipes = steps_of(*_inputs())
    times = watch(steps)
    made = rows(times, WHOLE, {})
    each = operations(pipes, rounds=watch.rounds, clock=watch.clock)
    for name, one in each.items():
        alone = {
            WHOLE: [statistics.median(times[WHOLE])],
            f"{name}: mpmd, makespan": [float(one.timeline.makespan)],
        }
        made += rows(alone, WHOLE, {})[1:]
    return made + peers()


def _inputs() -> tuple[jax.Array, jax.Array]:
    shape = SIZES.batch, SIZES.width
    first, second = (jax.random.normal(jax.random.key(i), shape) for i in (1, 2))
    return first, second


def steps_of(
    x: jax.Array, target: jax.Array
) -> tuple[dict[str, Callable[[], Any]], dict[str, Ready]]:
    """Steps that give a loss and gradients: the un-pipelined one, and those of PEERS.

    Args:
      x: (B, D), of `SIZES`.
      target: likewise.

    Returns:
      The steps by name; and of those by `mpmd` the pipelines, by schedule.
    """
    layers = [from_linen(Layer(SIZES.width), f"dense_{i}") for i in range(SIZES.layers)]
    whole = join(layers)
    params, state = whole.init(jax.random.key(0), x)
    steps, pipes = {WHOLE: _program(whole, params, state, x, target)}, {}
    for kind, micro in PEERS:
        name = f"{kind}, n={micro}"
        if kind == "gpipe":
            step = spmd_step(list(params.values()), x, target, micro)
            steps[f"{name}: spmd, a step"] = step
        pipe = mpmd(
            layers,
            loss,
            cuts=[SIZES.layers // STAGES],
            homes=jax.devices()[:STAGES],
            micro=micro,
            kind=kind,
        )
        batches = [(x[i::micro], target[i::micro]) for i in range(micro)]
        pipes[name] = Ready(pipe, *pipe.put(params, state), batches)
        steps[f"{name}: mpmd, a step"] = pipes[name].step
    return steps, pipes


def spmd_step(
    layers: Sequence[Tree], x: jax.Array, target: jax.Array, micro: int
) -> Callable[[], Any]:
    """The step as one program for both devices; as in torch, nothing is recomputed.

    A place that waits runs on rows that nobody reads, so on one core it does
    (n + p - 1) / n times the work.

    Args:
      layers: the parameters of each.
      x: see `steps_of`.
      target: likewise.
      micro: n, micro-batches.
    """
    mesh = make_cloud_mesh(f"pipe={STAGES}", devices=jax.devices()[:STAGES])
    stage = pipelined(
        repeat(from_linen(Layer(SIZES.width), "dense"), len(layers)),
        mesh,
        microbatches=micro,
        policy=jax.checkpoint_policies.everything_saveable,
    )
    apart = NamedSharding(mesh, PartitionSpec("pipe"))
    params = jax.device_put(jax.tree.map(lambda *a: jnp.stack(a), *layers), apart)
    x, target = jax.device_put((x, target), NamedSharding(mesh, PartitionSpec()))
    return _program(stage, params, {}, x, target)


def _program(
    stage: Stage, params: Tree, state: Tree, x: jax.Array, target: jax.Array
) -> Callable[[], Any]:
    """Loss and gradients of the whole batch as one program."""

    def run(params, x, target):
        y, _, _ = stage.apply(params, state, x, key=None, train=True)
        return loss(y, target)[0]

    return functools.partial(jax.jit(jax.value_and_grad(run)), params, x, target)


def peers() -> list[Row]:
    """Torch's own figures, each against the first, its step of one micro-batch.

    Example:
      >>> round(peers()[1]["ratio"], 3)
      0.859
    """
    (kind, micro), first = next(iter(PEERS.items()))
    reference = f"torch, {kind}, n={micro}"
    return [
        {
            "name": f"{kind}, n={micro}: torch on another machine",
            "value": seconds,
            "unit": "s",
            "reference": reference,
            "ratio": seconds / first,
            "bound": None,
        }
        for (kind, micro), seconds in PEERS.items()
    ]


# By the name that --only chooses.
PARTS: dict[str, Part] = {"pipeline/perceptron": perceptron}
