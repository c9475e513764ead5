"""Fine-tuning a pretrained encoder that is cut at a named place."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from splitjax import codecs, data
from splitjax.core.codec import Codec, Link, chain
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree
from splitjax.data.batches import model_inputs
from splitjax.models import heads, pretrained
from splitjax.models.bert import bert
from splitjax.models.bert_config import BertConfig
from splitjax.models.squeeze import Squeeze
from splitjax.train.bridge import squeezed_params
from splitjax.train.cut_experiment import DTYPES
from splitjax.train.experiment import Parts
from splitjax.train.finetune_options import FinetuneOptions
from splitjax.train.public_text import public_batches
from splitjax.train.task import TASKS, TOWERS, Task, task


class Finetune(FinetuneOptions):
    """A fine-tuning run: how its parts are built from its options.

    The edge holds the layers before the cut and the texts. The cut lies inside of the
    feed-forward block of one layer (`squeeze=True`), or after any stage (`after`).
    """

    def parts(self, seed: int, *, weights: bool = True) -> Parts:
        """Builds model, cut, links, data and optimizer."""
        table = self._table("train")
        if self.limit:
            table = table.take(self.limit)
        head = self._head(table.classes, table.text_b is not None)
        train = self.batches(table, head, seed)
        evals = {
            name: self.batches(self._table(name, table.classes), head, seed)
            for name in self.score_on or self.splits()
        }
        first = next(iter(train.epoch(0, micro=self.micro)))[0]
        facts = {
            "classes": table.classes,
            "pairs": table.text_b is not None,
            "steps_per_epoch": train.steps_per_epoch(),
        }
        made = self.model_parts(seed, facts, model_inputs(first), weights=weights)
        return dataclasses.replace(made, train=train, evals=evals, facts=facts)

    def model_parts(
        self, seed: int, facts: dict, x: Tree, *, weights: bool = True
    ) -> Parts:
        """All parts but the data: what a cloud builds, who has not seen it."""
        classes, pairs = facts["classes"], facts["pairs"]
        about, head = self._about(classes), self._head(classes, pairs)
        config = self._config()
        made = self._head_stages(head, classes)
        stages = self._bert(config, made)

        def given():
            key = jax.random.key(seed)
            return self._given(config, pairs and head not in TOWERS, key), {}

        params, state = self.started(stages, seed, x, given if weights else None)
        return self.parts_of(
            self.split_of(stages, about.loss),
            params,
            state,
            x,
            seed=seed,
            about=about,
            steps_per_epoch=facts["steps_per_epoch"],
            width=config.width,
        )

    def batches(self, table: data.Table, head: str, seed: int) -> data.Batches:
        """A table in the model's tokens, in batches."""
        return self.in_batches(self.encode(table, head), seed)

    def encode(self, table: data.Table, head: str) -> data.Encoded:
        """A table in the model's tokens."""
        config = pretrained.read_config(self.folder())
        encoded = data.Tokenizer(self.folder()).encode(
            table,
            max_length=min(self.max_length, config.longest),
            towers=head in TOWERS,
        )
        if not config.types:
            encoded = dataclasses.replace(encoded, types=None)
        return encoded

    def in_batches(self, encoded: data.Encoded, seed: int) -> data.Batches:
        """Tokens in the order of this experiment."""
        return data.Batches(
            encoded,
            self.batch_size,
            seed=seed,
            group_by_length=True,
            fixed=self.send_once,
        )

    def texts(self, path: str) -> tuple[list, data.Batches]:
        """Texts of the user's to predict for, and their batches.

        Raises:
          DataError: for a bad file, or texts of another kind than the task's.
        """
        first, second = data.read_texts(path)
        like = self._table("train")
        if (second is None) != (like.text_b is None):
            count = 1 if like.text_b is None else 2
            raise data.DataError(f"{path}: {self.task} reads {count} texts in a line")
        labels = np.zeros(len(first), np.int32)
        table = data.Table(path, "predict", first, second, labels, like.classes)
        found = first if second is None else list(zip(first, second, strict=True))
        head = self._head(like.classes, like.text_b is not None)
        return found, self.batches(table, head, 0)

    def squeezes(self) -> bool:
        """Whether this run parts a feed-forward block."""
        return self.mode == "split" and self.squeeze and not self.after

    def folder(self) -> pathlib.Path:
        """The model's folder; a pinned one is fetched where it is missing."""
        if self.model in ("minilm", "mpnet"):
            return data.folder(self.model, fetch=True)
        return pathlib.Path(self.model)

    def places(self) -> tuple[str, ...]:
        """Where a split run is cut, the labels' side left aside."""
        return self.after or (f"layer_{self.layer}/squeeze",)

    def link(self) -> Link:
        """The codecs of a cut."""
        padding = (codecs.ragged(),) if self.ragged else ()
        forward = chain(*padding, self._codec(self.forward_bits, "nearest"))
        backward = self._codec(self.backward_bits, "stochastic")
        text = super().link()
        if self.forward:
            forward = text.forward
        if self.backward:
            backward = text.backward
        return Link(forward, backward)

    def _codec(self, bits: int, rounding: str) -> Codec:
        if bits == 32:
            return codecs.identity()
        if bits == 16:
            return codecs.cast("bf16")
        return codecs.quantize(bits, axis=self.grid, rounding=rounding)

    def _table(
        self, split: str, classes: int | None = None, task: str = ""
    ) -> data.Table:
        task = task or self.task
        given = task not in TASKS and not task.startswith("tfds:")
        more: dict = {"classes": classes} if given else {}
        return data.load(task, split, data_dir=self.data_dir or None, **more)

    def _config(self) -> BertConfig:
        """The model's, as the options change it."""
        config = pretrained.read_config(self.folder())
        if self.layers > config.layers:
            raise ValueError(
                f"layers={self.layers}: {self.model} has {config.layers}, and the "
                "first ones are taken; 0 takes all"
            )
        more: dict = {} if self.dropout else {"dropout": 0.0, "attention_dropout": 0.0}
        layers = self.layers or config.layers
        return dataclasses.replace(config, fused=self.fused, layers=layers, **more)

    def _about(self, classes: int) -> Task:
        return task(self.task, classes)

    def _head(self, classes: int, pairs: bool) -> str:
        if self.head:
            return self.head
        if classes:
            return "classification"
        return "cosine" if pairs else "regression"

    def _head_stages(self, head: str, classes: int) -> tuple[Stage, ...]:
        how: dict = {"pool": self.pool} | ({} if self.dropout else {"dropout": 0.0})
        return {
            "cosine": heads.pair_cosine,
            "regression": lambda: heads.regression(**how),
            "classification": lambda: heads.classification(classes, **how),
            "pairs": lambda: heads.pairs(classes),
        }[head]()

    def _bert(self, config: BertConfig, head: tuple[Stage, ...]) -> tuple[Stage, ...]:
        squeeze = {self.layer: self._squeeze()} if self.squeezes() else {}
        return bert(config, head, squeeze=squeeze, dtype=DTYPES[self.dtype])

    def _given(self, config: BertConfig, pairs: bool, key: jax.Array) -> Tree:
        """Pretrained parameters, of the squeezed model where it is one."""
        del key  # nothing in them is random
        given = pretrained.load(self.folder(), config)
        if not self.squeezes():
            return given
        types = pairs and bool(config.types)

        def inputs():
            tokenizer = data.Tokenizer(self.folder())
            return public_batches(self.fit_text, tokenizer, pairs=pairs, types=types)

        return squeezed_params(
            given,
            bert(config, (), dtype=DTYPES[self.dtype]),
            self._bert(config, ()),
            layer=self.layer,
            squeeze=self._squeeze(),
            inputs=inputs,
            link=self.link(),
            steps=self.fit_steps,
            learning_rate=self.fit_rate,
            about={
                "texts": self.fit_text,
                "dtype": self.dtype,
                "inputs": ["ids", "mask", "types"] if types else ["ids", "mask"],
            },
        )

    def _squeeze(self) -> Squeeze:
        skip = "keep" if self.keep_skip else self.skip or None
        return Squeeze(self.rank, skip=skip, mode=self.bridge)


def narrow(**fields: Any) -> Finetune:
    """The recipe of the SFT configs: a frozen edge, 80 dimensions of 3 bits, no more.

    The code is the input of layer 1's feed-forward block in 80 dimensions, fit to
    public text; 30 bytes a token go up, and nothing comes down.

    Args:
      **fields: of `Finetune`, where they differ.

    Example:
      >>> narrow(task="cola").rank, narrow(task="cola", rank=8).rank
      (80, 8)
    """
    recipe: dict[str, Any] = {
        "layer": 1,
        "bridge": "pca",
        "rank": 80,
        "forward_bits": 3,
        "frozen_edge": True,
        "fit_steps": 1200,
        "fit_rate": 1e-3,
    }
    return Finetune(**{**recipe, **fields})
