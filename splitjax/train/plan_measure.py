"""What the stages of a plan take on this machine."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.parallel.mesh import make_cloud_mesh
from splitjax.parallel.mpmd import Pipeline, mpmd
from splitjax.parallel.schedule import BACKWARD, FORWARD, RECOMPUTE
from splitjax.parallel.stages import Plan
from splitjax.parallel.timeline import Timeline, simulate
from splitjax.train.bench import interleaved
from splitjax.train.plan_subject import Subject

Clock = Callable[[], float]


def matrix_rate(
    size: int = 1024, rounds: int = 3, *, clock: Clock = time.perf_counter
) -> float:
    """Operations a second of one device, in a product of square float32 matrices.

    Example:
      >>> matrix_rate(16, 1) > 0
      True
    """
    a = jnp.ones((size, size), jnp.float32)
    return 2 * size**3 / _quickest(jax.jit(jnp.matmul), (a, a), rounds, clock)


def stream_rate(
    count: int = 2**24, rounds: int = 3, *, clock: Clock = time.perf_counter
) -> float:
    """Bytes a second that one device moves in a sum of two float32 arrays.

    Example:
      >>> stream_rate(16, 1) > 0
      True
    """
    a = jnp.ones(count, jnp.float32)
    return 3 * a.nbytes / _quickest(jax.jit(jnp.add), (a, a), rounds, clock)


def _quickest(run: Any, arguments: tuple, rounds: int, clock: Clock) -> float:
    step = {"run": lambda: run(*arguments)}
    return min(interleaved(step, rounds=rounds, warm=1, clock=clock)["run"])


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the stages of a plan took on this machine.

    Attributes:
      forward: seconds of each stage for one micro-batch, alone.
      recompute: likewise; 0 where nothing is computed again.
      backward: likewise.
      timeline: of the schedule with these times.
      whole: seconds of a whole step, on the cores of this machine.
      loss: of it.
    """

    forward: tuple[float, ...]
    recompute: tuple[float, ...]
    backward: tuple[float, ...]
    timeline: Timeline
    whole: float
    loss: float


def measured(
    plan: Plan,
    about: Subject,
    *,
    rounds: int = 3,
    clock: Clock = time.perf_counter,
) -> Measured:
    """Runs a plan: each operation alone, then whole steps.

    Args:
      plan: without an axis tensor.
      about: its model; every micro-batch is the same.
      rounds: steps of each; their medians are given.
      clock: in seconds.

    Raises:
      ValueError: for a plan with an axis tensor.
    """
    if plan.tensor > 1:
        raise ValueError(
            f"{plan.mesh}: stages of parted matrices are not timed here; measure=False"
        )
    pipe = pipeline(plan, about)
    parts = pipe.put(about.params, about.state)
    batches = [(about.x, about.target)] * plan.micro
    key = jax.random.key(0)
    jax.block_until_ready(pipe.value_and_grad(*parts, batches, key=key))  # compiles
    took: dict[tuple[int, str], list[float]] = {}
    for _ in range(rounds):
        for place, times in pipe.seconds(*parts, batches, key=key, clock=clock).items():
            took.setdefault(place, []).extend(times)
    whole, loss = [], 0.0
    for _ in range(rounds):
        start = clock()
        (value, _), grads = pipe.value_and_grad(*parts, batches, key=key)
        jax.block_until_ready(grads)
        whole.append(clock() - start)
        loss = float(value)
    each = {
        kind: tuple(
            statistics.median(took.get((stage, kind), [0.0]))
            for stage in range(plan.pipe)
        )
        for kind in (FORWARD, RECOMPUTE, BACKWARD)
    }
    times = simulate(
        pipe.lists,
        forward=each[FORWARD],
        recompute=each[RECOMPUTE],
        backward=each[BACKWARD],
    )
    return Measured(
        each[FORWARD],
        each[RECOMPUTE],
        each[BACKWARD],
        times,
        statistics.median(whole),
        loss,
    )


def pipeline(plan: Plan, about: Subject) -> Pipeline:
    """The plan's stages on the first devices of this process.

    Raises:
      ValueError: when there are too few.
    """
    devices = jax.devices()
    if len(devices) < plan.data * plan.pipe:
        raise ValueError(
            f"{plan.mesh} needs {plan.data * plan.pipe} devices, and there are "
            f"{len(devices)}"
        )
    homes: list[Any] = devices[: plan.pipe]
    if plan.data > 1:
        width = plan.data
        homes = [
            make_cloud_mesh(f"data={width}", devices=devices[s * width :][:width])
            for s in range(plan.pipe)
        ]
    return mpmd(
        about.stages,
        about.loss,
        cuts=plan.cuts,
        homes=homes,
        micro=plan.micro,
        kind=plan.kind,
        recompute=plan.recompute,
    )
