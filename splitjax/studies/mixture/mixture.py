"""Fine-tuning on a mixture of tasks, with experts in the feed-forward blocks."""

import dataclasses
from collections.abc import Iterable

import jax
import numpy as np

from splitjax import data
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree
from splitjax.data.batches import model_inputs
from splitjax.metrics.grouped import grouped_accuracy, grouped_cross_entropy
from splitjax.models.bert_config import BertConfig
from splitjax.train.experiment import Parts, option
from splitjax.train.expert_options import FFN, ExpertOptions
from splitjax.train.finetune import Finetune
from splitjax.train.task import Task


@dataclasses.dataclass
class Mixture(Finetune, ExpertOptions):
    """Options of a run on several tasks at once; the system it stands for is MPOE.

    All tasks are classifications of one sequence (one text or two), and share the model
    up to the head, which has logits of its own for each. Its score is the mean of their
    accuracies.
    """

    task: str = option("cola+mrpc+rte+sst2", "data sets, with '+' between")
    mode: str = option("unsplit", "'unsplit'; or as in every experiment")
    squeeze: bool = option(False, "not with experts: take after=('layer_2',)")
    limit: int = option(0, "training examples of each task at most, drawn by chance")
    ffn: str = option("mpoe", f"the feed-forward blocks: one of {FFN}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the data sets."""
        return tuple(self.task.split("+"))

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        if len(set(self.tasks)) < len(self.tasks) or not all(self.tasks):
            raise ValueError(f"task={self.task!r}: names with '+' between, each once")
        if self.squeeze:
            raise ValueError("squeeze=True: a mixture is cut after=('layer_2',) or so")
        if (self.head or "classification") != "classification":
            raise ValueError(f"head={self.head!r}: a mixture has 'classification'")

    def splits(self) -> tuple[str, ...]:
        """All tasks together, and each."""
        return "dev", *self.tasks

    def parts(self, seed: int, *, weights: bool = True) -> Parts:
        """Builds model, data and optimizer."""
        tables = [self._table("train", task=task) for task in self.tasks]
        if wrong := [t.name for t in tables if not t.classes]:
            raise data.DataError(
                f"{wrong} have no classes: a mixture has no regression"
            )
        classes = max(table.classes for table in tables)
        if self.limit:
            tables = [_drawn(table, self.limit) for table in tables]
        train = self._merged(self._encoded(tables), classes, seed)
        dev = self._encoded(
            self._table("dev", table.classes, task)
            for task, table in zip(self.tasks, tables, strict=True)
        )
        evals = {"dev": self._merged(dev, classes, seed)}
        for index, task in enumerate(self.tasks):
            evals[task] = self._merged([dev[index]], classes, seed, first=index)
        evals = {name: evals[name] for name in self.score_on or evals}
        first = next(iter(train.epoch(0, micro=self.micro)))[0]
        facts = {
            "classes": classes * len(self.tasks),
            "pairs": any(table.text_b is not None for table in tables),
            "steps_per_epoch": train.steps_per_epoch(),
        }
        made = self.model_parts(seed, facts, model_inputs(first), weights=weights)
        return dataclasses.replace(
            made,
            score=grouped_accuracy(len(self.tasks)),
            score_name="accuracy",
            train=train,
            evals=evals,
            facts=facts,
        )

    def _encoded(self, tables: Iterable[data.Table]) -> list[data.Encoded]:
        """Tables in tokens."""
        return [self.encode(table, "classification") for table in tables]

    def _merged(
        self, each: list[data.Encoded], classes: int, seed: int, *, first: int = 0
    ) -> data.Batches:
        """Tables one after the other; labels are task * classes + class."""
        ids = [row for one in each for row in one.ids[0]]
        types = None
        if any(one.types is not None for one in each):
            types = [
                row
                for one in each
                for row in (one.types or [np.zeros_like(r) for r in one.ids[0]])
            ]
        label = [one.label + (first + i) * classes for i, one in enumerate(each)]
        merged = np.concatenate(label).astype(np.int32)
        encoded = data.Encoded((ids,), types, merged, each[0].max_length)
        return self.in_batches(encoded, seed)

    def _about(self, classes: int) -> Task:
        return Task("accuracy", ("dev",), grouped_cross_entropy(len(self.tasks)))

    def _bert(self, config: BertConfig, head: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return self.with_experts(super()._bert(config, head), config)

    def _given(self, config: BertConfig, pairs: bool, key: jax.Array) -> Tree:
        """Pretrained parameters, each feed-forward block copied to the experts."""
        return self.upcycled(super()._given(config, pairs, key), config, key)


def _drawn(table: data.Table, count: int) -> data.Table:
    """So many rows of a table, the same ones in every run."""
    order = np.random.default_rng(0).permutation(len(table))
    return table.pick(order < count)
