"""Steps of a benchmark: one batch of an experiment, again and again, on any driver."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from splitjax.runtime.local import Local
from splitjax.runtime.meter import Meter
from splitjax.train.bench import interleaved, rows
from splitjax.train.drivers import ToCloud, make_driver
from splitjax.train.experiment import Experiment, Parts
from splitjax.train.loop import tick_batch

Step = Callable[[], Any]
BOUND = 1.05


def recipes(experiment: Experiment) -> dict[str, Experiment]:
    """What is measured: a config, with its edge trained, whole in float32, un-split.

    Weights are not distilled: no time depends on their values.

    Args:
      experiment: of a cut model that is fine-tuned; see `splitjax.train.finetune`.
    """
    given: Any = experiment
    free: dict[str, Any] = dict(limit=512, fit_steps=0, fit_text=given.fit_text[-1:])
    given = dataclasses.replace(given, mode="split", **free)
    whole: dict[str, Any] = dict(forward_bits=32, backward_bits=32, ragged=False)
    return {
        "float32": dataclasses.replace(
            given, after=(f"layer_{given.layer}",), frozen_edge=False, **whole
        ),
        "this config": given,
        "this config, edge trained": dataclasses.replace(
            given, frozen_edge=False, backward_bits=4
        ),
        "un-split": given.unsplit(),
    }


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


def one_program(experiment: Experiment) -> Step:
    """The same step as one jitted program: `value_and_grad`, then the optimizer."""
    parts = experiment.parts(0)
    split, first = parts.split, parts.split.frozen
    [tick] = ticks_of(experiment, parts)
    given: Any = experiment
    tx = given.widened(experiment.tx(parts.train.steps_per_epoch()), 0)
    links = split.init_links(parts.params, parts.state, tick["x"])

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def run(params, opt, links, x, target, number):
        (loss, extra), grads = split.value_and_grad(
            params, parts.state, links, x, target, key=jax.random.key(number)
        )
        updates, opt = tx.update(grads[first:], opt, params[first:])
        new: Any = optax.apply_updates(params[first:], updates)
        return (*params[:first], *new), opt, extra["links"], loss

    params = jax.tree.map(jnp.copy, parts.params)
    opt, number = tx.init(params[first:]), 0

    def step():
        nonlocal params, opt, links, number
        number += 1
        params, opt, links, loss = run(
            params, opt, links, tick["x"], tick["target"], number
        )
        return params, opt, loss

    return step


def one_process(b: Any) -> list[dict[str, Any]]:
    """The split step with both halves in this process, against the un-split step.

    One program stands against one program, and the driver against the driver.

    Args:
      b: see `bench_processes.Bench`.
    """
    made = recipes(dataclasses.replace(b.base, micro=1, in_flight=1))
    reference, whole = "un-split", ", one program"
    programs = {
        f"{name}{whole}": one_program(made[name])
        for name in ("float32", "this config", reference)
    }
    drivers = {}
    for name, experiment in made.items():
        for frames in (False, True):
            if not (frames and name == reference):
                title = f"{name}, frames" if frames else name
                drivers[title] = stepper(experiment, frames=frames)[1]
    times = interleaved({**programs, **drivers}, rounds=b.rounds)
    found = []
    for plan, against in ((programs, f"{reference}{whole}"), (drivers, reference)):
        bounds = {name: BOUND for name in plan if name != against}
        found += rows({name: times[name] for name in plan}, against, bounds)
    return found
