"""What the stages of a plan take on this machine."""

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.parallel.mesh import make_cloud_mesh
from splitjax.parallel.mpmd import Pipeline, mpmd
from splitjax.parallel.stages import Plan
from splitjax.studies.plan.subject import Subject
from splitjax.studies.plan.times import Clock, Operations, Ready, operations
from splitjax.train.timing import interleaved


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
class Measured(Operations):
    """What the stages of a plan took on this machine, alone and together.

    Attributes:
      whole: seconds of a whole step, on the cores of this machine.
      loss: of it.
    """

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
    made, losses = ready(plan, about), []

    def step():
        loss, grads = made.step()
        losses.append(loss)
        return grads

    watch: dict[str, Any] = {"rounds": rounds, "clock": clock}
    [each] = operations({plan.mesh: made}, **watch).values()
    [whole] = interleaved({"step": step}, warm=0, **watch).values()
    return Measured(
        **vars(each), whole=statistics.median(whole), loss=float(losses[-1])
    )


def ready(plan: Plan, about: Subject) -> Ready:
    """The plan's pipeline with its model, and the same micro-batch again and again.

    Raises:
      ValueError: when there are too few devices.
    """
    pipe = pipeline(plan, about)
    batches = [(about.x, about.target)] * plan.micro
    return Ready(pipe, *pipe.put(about.params, about.state), batches)


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
