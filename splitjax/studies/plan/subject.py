"""The model that a plan is made for, with one micro-batch of its data."""

import dataclasses

import numpy as np

from splitjax.core.split import Loss
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree
from splitjax.data.batches import model_inputs
from splitjax.metrics.perplexity import next_symbol
from splitjax.studies.plan.options import Planning
from splitjax.train import flags
from splitjax.train.cut_experiment import CutExperiment, check_fused
from splitjax.train.language import open_model
from splitjax.train.loop import tick_batch


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model with its weights, its loss and one micro-batch."""

    stages: tuple[Stage, ...]
    params: Tree
    state: Tree
    loss: Loss
    x: Tree
    target: Tree


def subject(options: Planning) -> Subject:
    """The model that is planned.

    Raises:
      FileNotFoundError: when a decoder's folder lacks a file.
      SystemExit: when there is no such config file.
      ValueError: see `subject_of`.
    """
    if options.model.endswith(".py"):
        return subject_of(flags.load(options.model), options.mesh)
    opened = open_model(options.model)
    chance = np.random.default_rng(0)
    vocab = opened.params["embed"]["word"]["embedding"].shape[0]
    ids = chance.integers(0, vocab, (options.rows, options.tokens + 1), np.int32)
    x = {"ids": ids[:, :-1], "mask": np.ones((options.rows, options.tokens), bool)}
    target = {"y": ids[:, 1:], "n_valid": np.int32(options.rows)}
    model = opened.model.stages
    return Subject(model, opened.params, opened.state, next_symbol, x, target)


def subject_of(experiment: CutExperiment, mesh: str = "") -> Subject:
    """An experiment's model without its cut, and its first micro-batch.

    Args:
      experiment: whose own mesh and recomputation are left aside.
      mesh: what is planned for; "" for any.

    Raises:
      ValueError: for `fused="auto"`: a plan may be on a mesh.
    """
    check_fused(getattr(experiment, "fused", ""), mesh or "any")
    # What is computed again is the plan's to say, by stage.
    parts = dataclasses.replace(experiment.unsplit(), recompute="none").parts(0)
    [first, *_] = next(iter(parts.train.epoch(0, micro=experiment.micro)))
    return Subject(
        parts.split.cut.model.stages,
        parts.params[0],
        parts.state[0],
        parts.split.loss,
        model_inputs(first),
        tick_batch(first, first["n_valid"])["target"],
    )
