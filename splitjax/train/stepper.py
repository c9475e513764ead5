"""Steps to be timed: one batch of an experiment, again and again, on any driver."""

from collections.abc import Callable
from typing import Any

import jax

from splitjax.runtime.local import Local
from splitjax.runtime.meter import Meter
from splitjax.train.drivers import ToCloud, make_driver
from splitjax.train.experiment import Experiment, Parts
from splitjax.train.loop import tick_batch


def ticks_of(experiment: Experiment, parts: Parts) -> list[dict]:
    """The ticks of one step: the epoch's longest micro-batch, as often as it takes."""
    micro = experiment.micro
    steps = parts.train.epoch(0, micro=micro)
    longest = max((b for step in steps for b in step), key=lambda b: b["mask"].sum())
    return [tick_batch(longest, longest["n_valid"] * micro)] * micro


def stepper(
    experiment: Experiment,
    *,
    frames: bool = True,
    cloud: ToCloud | None = None,
    meter: Meter | None = None,
) -> tuple[Any, Callable[..., Any]]:
    """A driver, and a function that does its next step.

    Args:
      experiment: what to run.
      frames: see `Local`; for a run without a cloud.
      cloud: where the other half is.
      meter: counts what is sent.

    Returns:
      The driver, and `step(in_flight=...) -> arrays` to wait for.
    """
    parts = experiment.parts(0, weights=cloud is None)
    ticks = ticks_of(experiment, parts)
    if cloud is None:
        driver: Any = Local(
            experiment.cloud_algorithm(parts), jax.random.key(0), frames=frames
        )
    else:
        driver = make_driver(experiment, 0, parts, meter or Meter(), cloud)
    state = driver.start(parts.params, parts.state, ticks[0]["x"])

    def step(in_flight: int = experiment.in_flight):
        nonlocal state
        state, metrics = driver.step(state, ticks, in_flight=in_flight)
        return state.edge, state.slot, metrics

    return driver, step
