"""What the operations of pipelines take on this machine, each of them alone."""

import dataclasses
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import jax
from jax.extend.backend import clear_backends

from splitjax.core.tree import Tree
from splitjax.parallel.mpmd import Pipeline
from splitjax.parallel.schedule import BACKWARD, FORWARD, RECOMPUTE
from splitjax.parallel.timeline import Timeline, simulate

Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Ready:
    """A pipeline, and what a step of it runs on.

    Attributes:
      pipe: the pipeline.
      params: by segment, as `Pipeline.put` gives them.
      state: likewise.
      batches: input and target of each micro-batch.
    """

    pipe: Pipeline
    params: tuple
    state: tuple
    batches: Sequence[tuple[Tree, Tree]]

    def step(self) -> tuple[jax.Array, tuple]:
        """Loss and gradients of a whole step."""
        (loss, _), grads = self.pipe.value_and_grad(
            self.params, self.state, self.batches, key=jax.random.key(0)
        )
        return loss, grads

    def seconds(self, clock: Clock) -> dict[tuple[int, str], tuple[float, ...]]:
        """See `Pipeline.seconds`."""
        return self.pipe.seconds(
            self.params, self.state, self.batches, key=jax.random.key(0), clock=clock
        )


@dataclasses.dataclass(frozen=True)
class Operations:
    """What the stages of a pipeline took, one operation after the other.

    Attributes:
      forward: seconds of each stage for one micro-batch, alone.
      recompute: likewise; 0 where nothing is computed again.
      backward: likewise.
      timeline: of the pipeline's schedule with these times: what devices of their own
        would take, as fast as this one and without links.
    """

    forward: tuple[float, ...]
    recompute: tuple[float, ...]
    backward: tuple[float, ...]
    timeline: Timeline


def operations(
    ready: Mapping[str, Ready], *, rounds: int, clock: Clock = time.perf_counter
) -> dict[str, Operations]:
    """Times the operations of some pipelines, each alone, the pipelines in turn.

    Args:
      ready: by name.
      rounds: steps of each; medians over them and their micro-batches are given.
      clock: in seconds.
    """
    took: dict[str, dict[tuple[int, str], list[float]]] = {name: {} for name in ready}
    for one in ready.values():
        jax.block_until_ready(one.step())  # compiles
    for _ in range(rounds):
        for name, one in ready.items():
            for place, times in one.seconds(clock).items():
                took[name].setdefault(place, []).extend(times)
    return {name: _composed(one.pipe, took[name]) for name, one in ready.items()}


def _composed(
    pipe: Pipeline, took: Mapping[tuple[int, str], list[float]]
) -> Operations:
    forward, recompute, backward = (
        tuple(
            statistics.median(took.get((stage, kind), [0.0]))
            for stage in range(len(pipe.lists))
        )
        for kind in (FORWARD, RECOMPUTE, BACKWARD)
    )
    times = simulate(
        pipe.lists, forward=forward, recompute=recompute, backward=backward
    )
    return Operations(forward, recompute, backward, times)


def get_devices(count: int, what: str) -> bool:
    """Sees to it that there are so many devices, on a CPU virtual ones.

    JAX starts anew where it began with fewer: arrays made before are lost. They are not
    made beforehand, since as many threads as devices share the cores, and small
    operations are slower for it.

    Args:
      count: how many are needed.
      what: what is left out without them.

    Returns:
      Whether there are; where there are not, the log says so.

    Example:
      >>> get_devices(1, "a pipeline of one stage")
      True
    """
    if len(jax.devices()) < count and jax.default_backend() == "cpu":
        clear_backends()
        jax.config.update("jax_num_cpu_devices", count)
    there = len(jax.devices())
    if there < count:
        logging.warning("%s is left out: it needs %d devices of %d", what, count, there)
    return there >= count
