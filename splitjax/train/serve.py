"""The cloud of an experiment: what it builds for an edge that says hello."""

import functools
import json
from typing import Any

import jax
import numpy as np

from splitjax.core.tree import Tree, spec_of
from splitjax.runtime.cloud import Build, Plan
from splitjax.runtime.control import Refused
from splitjax.runtime.lane import Made
from splitjax.runtime.programs import weights_of
from splitjax.runtime.schema import Schema, WrongSchema
from splitjax.runtime.shapes import nest
from splitjax.train.experiment import Experiment

# Where each host has its own; the other fields of a config must agree.
OF_THE_HOST = ("data_dir",)


def run_key(seed: int) -> jax.Array:
    """The key of a run, which both ends have by its seed.

    Example:
      >>> run_key(0) == run_key(0)
      Array(True, dtype=bool)
    """
    return jax.random.fold_in(jax.random.key(seed), 1)


def agreed(experiment: Experiment, seed: int) -> dict[str, Any]:
    """What both ends must have alike, as JSON types.

    Example:
      >>> agreed(Experiment(task="stsb"), 3)["seed"]
      3
    """
    config = json.loads(json.dumps(experiment.identity(seed)))
    return {name: v for name, v in config.items() if name not in OF_THE_HOST}


def check_labels(within: tuple[int, int], target: dict[str, Any]) -> None:
    """Raises a ValueError for labels that no data has; their specs were checked before.

    Args:
      within: see `Experiment.label_range`.
      target: what an edge sends beside its message.

    Example:
      >>> check_labels((0, 2), {"y": np.array([0, 3]), "n_valid": 2})
      Traceback (most recent call last):
      ...
      ValueError: labels from 0 to 3: they are from 0 to 1
    """
    (low, high), y, count = within, np.asarray(target["y"]), int(target["n_valid"])
    if not 0 <= count <= len(y):
        raise ValueError(f"n_valid is {count}, of {len(y)} examples")
    if low < high and ((y < low) | (y >= high)).any():
        raise ValueError(
            f"labels from {y.min()} to {y.max()}: they are from {low} to {high - 1}"
        )


def build(experiment: Experiment) -> Build:
    """What `runtime.cloud.Cloud` asks when an edge says hello.

    The run is named for its seed. Nothing that the edge says is used before it was
    compared with the cloud's own config, or found within bounds.
    """

    def plan(number: int, hello: dict[str, Any]) -> Plan:
        theirs, facts = hello["config"], hello["facts"]
        seed = theirs.get("seed")
        if type(seed) is not int or not 0 <= seed < 2**31:
            raise Refused("config", f"seed={seed!r:.50}: expected a number below 2^31")
        ours = agreed(experiment, seed)
        rows = [
            f"{name}: {theirs.get(name)!r:.80} at the edge, {ours.get(name)!r:.80} here"
            for name in sorted({*theirs, *ours}, key=str)
            if theirs.get(name) != ours.get(name)
        ]
        if rows:
            listing = "; ".join(rows[:10])
            raise Refused("config", f"edge and cloud have unlike configs ({listing})")
        try:
            experiment.check_facts(facts)
            x = nest(Schema.from_bytes(hello["batch"]))
            check(x)
        except ValueError as error:
            raise Refused("facts", str(error)) from error
        config = {**ours, "facts": facts}
        return Plan(f"seed_{seed}", config, lambda: make(seed, facts, x["x"], number))

    def check(batch: Tree) -> None:
        try:
            experiment.check_batch(batch)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WrongSchema(str(error)) from error

    def make(seed: int, facts: dict, x: Tree, number: int) -> Made:
        parts = experiment.model_parts(seed, facts, x)
        algorithm = experiment.cloud_algorithm(parts)
        labels = experiment.label_range(facts)
        edge, shared, slot = algorithm.init(parts.params, parts.state, x)
        owners = parts.split.cut.owners
        return Made(
            algorithm=algorithm,
            key=run_key(seed),
            micro=experiment.micro,
            weights=weights_of("edge", owners, parts.params, parts.state),
            edge=spec_of(edge),
            shared=shared,
            slot=slot,
            check=check,
            check_labels=functools.partial(check_labels, labels),
            examples=parts.examples,
            mapped=getattr(experiment, "map_rows", False),
        )

    return plan
