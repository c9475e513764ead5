"""What a cut costs in one process: the split step against the un-split jitted step.

Writes bench_split.json into --workdir: one row a kind of step, measured in one run.
"""

import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags as absl_flags

from splitjax.data.batches import model_inputs
from splitjax.runtime.local import Local
from splitjax.train import bench, flags
from splitjax.train.experiment import Experiment
from splitjax.train.loop import tick_batch

LAUNCH = flags.define("configs/sft_stsb.py")
ROUNDS = absl_flags.DEFINE_integer("rounds", 15, "how often each step is timed")
BOUND = 1.05


def one_program(experiment: Experiment):
    """The same step as one jitted program: `value_and_grad`, then the optimizer."""
    parts = experiment.parts(0)
    split, first = parts.split, parts.split.frozen
    [batch] = max(parts.train.epoch(0), key=lambda step: step[0]["mask"].sum())
    tick = tick_batch(batch, batch["n_valid"])
    tx = experiment.tx(parts.train.steps_per_epoch())
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


def stepper(experiment: Experiment, *, frames: bool):
    """A function that does the next step of a run on one batch, again and again."""
    parts = experiment.parts(0)
    [batch] = max(parts.train.epoch(0), key=lambda step: step[0]["mask"].sum())
    driver = Local(parts.algorithm, jax.random.key(0), frames=frames)
    state = driver.start(parts.params, parts.state, model_inputs(batch))
    tick = tick_batch(batch, batch["n_valid"])

    def step():
        nonlocal state
        state, metrics = driver.step(state, [tick])
        return state.edge, state.slot, metrics

    return step


def main(_: list[str]) -> None:
    """Times every kind of step in turn."""
    experiment = dataclasses.replace(LAUNCH.experiment, limit=512, micro=1, fit_steps=0)
    plain = dataclasses.replace(
        experiment,
        after=(f"layer_{experiment.layer}",),
        forward_bits=32,
        backward_bits=32,
        ragged=False,
        frozen_edge=False,
    )
    trained = dataclasses.replace(experiment, frozen_edge=False, backward_bits=4)
    unsplit = dataclasses.replace(experiment, mode="unsplit")
    steps = {
        "un-split": stepper(unsplit, frames=False),
        "layer cut, float32, one program": one_program(plain),
        "layer cut, float32": stepper(plain, frames=False),
        "layer cut, float32, frames": stepper(plain, frames=True),
        "this config, edge trained, frames": stepper(trained, frames=True),
        "this config, one program": one_program(experiment),
        "this config": stepper(experiment, frames=False),
        "this config, frames": stepper(experiment, frames=True),
    }
    times = bench.interleaved(steps, rounds=ROUNDS.value)
    made = bench.rows(times, "un-split", {name: BOUND for name in list(steps)[1:]})
    table = bench.write(made, LAUNCH.workdir / "bench_split.json")
    sys.stdout.write(f"{table}\n")


if __name__ == "__main__":
    flags.run(main)
