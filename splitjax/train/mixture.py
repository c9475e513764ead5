"""Fine-tuning on a mixture of tasks, with experts in the feed-forward blocks."""

import dataclasses

import jax
import numpy as np
import optax

from splitjax import data
from splitjax.core.keys import fold
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree
from splitjax.data.batches import model_inputs
from splitjax.factors.mpo_plan import MpoPlan, mpo_plan
from splitjax.metrics.grouped import grouped_accuracy, grouped_cross_entropy
from splitjax.models.bert import bert
from splitjax.models.bert_config import BertConfig
from splitjax.models.moe import Moe, moe_ffn
from splitjax.models.upcycle import upcycle
from splitjax.optim.mask import mask_updates
from splitjax.train.cut_experiment import DTYPES
from splitjax.train.experiment import Parts, check, option
from splitjax.train.finetune import Finetune
from splitjax.train.task import Task

FFN = ("dense", "moe", "mpoe")


@dataclasses.dataclass
class Mixture(Finetune):
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
    experts: int = option(8, "in each block")
    router: str = option("top1_st", "'top1_st', 'top1_scale' or 'top2'")
    capacity: float = option(1.25, "places in training, in parts of an even share")
    eval_capacity: float = option(2.0, "places in evaluation, likewise")
    balance: float = option(1e-2, "weight of the load-balance loss")
    group: str = option("batch", "whose tokens share places: 'batch' or 'sequence'")
    max_bond: int = option(0, "of 'mpoe': the largest bond; 0: exact")
    mask: float = option(
        0.875, "of 'mpoe': the share of updates that shared cores leave out; 1 - 1/E"
    )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the data sets."""
        return tuple(self.task.split("+"))

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        check(self.ffn, "ffn", FFN)
        self._moe()
        if len(set(self.tasks)) < len(self.tasks) or not all(self.tasks):
            raise ValueError(f"task={self.task!r}: names with '+' between, each once")
        if self.squeeze:
            raise ValueError("squeeze=True: a mixture is cut after=('layer_2',) or so")
        if (self.head or "classification") != "classification":
            raise ValueError(f"head={self.head!r}: a mixture has 'classification'")
        if not 0 <= self.mask <= 1:
            raise ValueError(f"mask={self.mask}: a probability, from 0 to 1")
        if self.max_bond < 0:
            raise ValueError(f"max_bond={self.max_bond}: 1 or more; 0: full bonds")

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
        train = self._merged(tables, classes, seed)
        dev = [
            self._table("dev", table.classes, task)
            for task, table in zip(self.tasks, tables, strict=True)
        ]
        evals = {"dev": self._merged(dev, classes, seed)}
        for index, task in enumerate(self.tasks):
            evals[task] = self._merged([dev[index]], classes, seed, first=index)
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

    def tx(self, steps: int) -> optax.GradientTransformation:
        """The optimizer; with shared cores, their updates are left out by chance."""
        whole = super().tx(steps)
        if self.ffn != "mpoe" or not self.mask:
            return whole
        key = fold(jax.random.key(0), "mask")
        return mask_updates(whole, r".*/central", self.mask, key=key)

    def _merged(
        self, tables: list[data.Table], classes: int, seed: int, *, first: int = 0
    ) -> data.Batches:
        """Tables in tokens, one after the other; labels are task * classes + class."""
        each = [self.encode(table, "classification") for table in tables]
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

    def _moe(self) -> Moe:
        names = [field.name for field in dataclasses.fields(Moe)]
        return Moe(**{name: getattr(self, name) for name in names})

    def _plans(self, config: BertConfig) -> dict[str, MpoPlan] | None:
        if self.ffn != "mpoe":
            return None
        d, f, most = config.width, config.ffn, self.max_bond or None
        return {
            "wi": mpo_plan(d, f, max_bond=most),
            "wo": mpo_plan(f, d, max_bond=most),
        }

    def _bert(self, config: BertConfig, head: tuple[Stage, ...]) -> tuple[Stage, ...]:
        dtype = DTYPES[self.dtype]
        if self.ffn == "dense":
            return bert(config, head, dtype=dtype)
        moe, plans = self._moe(), self._plans(config)
        blocks = {
            layer: moe_ffn(config, layer, moe, plans=plans, dtype=dtype)
            for layer in range(config.layers)
        }
        return bert(config, head, blocks=blocks, dtype=dtype)

    def _given(self, config: BertConfig, pairs: bool, key: jax.Array) -> Tree:
        """Pretrained parameters, each feed-forward block copied to the experts."""
        given = super()._given(config, pairs, key)
        if self.ffn == "dense":
            return given
        plans = self._plans(config)
        for layer in range(config.layers):
            name = f"layer_{layer}/ffn"
            more = {"key": fold(key, name), "plans": plans, "std": config.init_std}
            given[name] = upcycle(given[name], self.experts, **more)
        return given


def _drawn(table: data.Table, count: int) -> data.Table:
    """So many rows of a table, the same ones in every run."""
    order = np.random.default_rng(0).permutation(len(table))
    return table.pick(order < count)
