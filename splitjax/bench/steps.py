"""The split step in one process, beside the un-split one."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from splitjax.train.experiment import Experiment
from splitjax.train.stepper import stepper, ticks_of
from splitjax.train.timing import interleaved, rows

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
      b: see `bench.processes.Bench`.
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
