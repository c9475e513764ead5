"""Tasks: what they are scored by, what they learn from."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from splitjax.metrics import loss, score

SCORES: dict[str, Callable] = {
    "spearman": score.spearman,
    "pearson": score.pearson,
    "accuracy": score.accuracy,
    "matthews": score.matthews,
    "f1": score.f1,
}
HEADS = ("cosine", "regression", "classification", "pairs")
TOWERS = ("cosine", "pairs")  # heads that read two texts apart


@dataclasses.dataclass(frozen=True)
class Task:
    """Facts about a task.

    Attributes:
      metric: a name of `SCORES`; "" for accuracy (classes) or Spearman (values).
      splits: the data splits that have labels to score on.
      loss: `(y, target) -> (scalar, metrics)`; None for the usual one of its labels.
    """

    metric: str = ""
    splits: tuple[str, ...] = ("dev",)
    loss: Any = None


def unit_squared_error(y: jax.Array, target: dict) -> tuple[jax.Array, dict]:
    """The squared error of a similarity from 0 to 1, of labels from 0 to 5.

    Example:
      >>> import jax.numpy as jnp
      >>> target = {"y": jnp.array([5.0]), "n_valid": jnp.int32(1)}
      >>> float(unit_squared_error(jnp.array([1.0]), target)[0])
      0.0
    """
    return loss.squared_error(y, {**target, "y": target["y"] / 5})


TASKS = {
    "stsb": Task("spearman", ("dev", "test"), unit_squared_error),
    "cola": Task("matthews"),
    "mrpc": Task("accuracy"),
    "rte": Task("accuracy"),
    "sst2": Task("accuracy"),
    "rotten_tomatoes": Task("accuracy", ("dev", "test")),
    "snli": Task("accuracy", ("dev", "test")),
    "newsgroups20": Task("accuracy", ("dev", "test")),
    "cifar10": Task("accuracy", ("test",)),
    "fashion_mnist": Task("accuracy", ("test",)),
    "digits": Task("accuracy", ("test",)),
}


def task(name: str, classes: int) -> Task:
    """A known task, or the usual choices for a data set of the user's.

    Example:
      >>> task("mine.csv", 2).metric, task("mine.csv", 0).metric, task("cola", 2).metric
      ('accuracy', 'spearman', 'matthews')
    """
    known = TASKS.get(name, Task())
    usual = loss.cross_entropy if classes else loss.squared_error
    return dataclasses.replace(
        known,
        metric=known.metric or ("accuracy" if classes else "spearman"),
        loss=known.loss or usual,
    )
