"""Fine-tuning a pretrained encoder that is cut at a named place."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from splitjax import codecs, data
from splitjax.algorithms.split import split_learning
from splitjax.core.codec import Codec, Link, chain
from splitjax.core.cut import cut
from splitjax.core.message import tree_bytes
from splitjax.core.split import Split
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree, spec_of
from splitjax.data.batches import model_inputs
from splitjax.metrics.flops import edge_share
from splitjax.models import heads, pretrained
from splitjax.models.bert import bert
from splitjax.models.bert_config import BertConfig
from splitjax.models.squeeze import Squeeze
from splitjax.train.bridge import distilled, fit_squeeze, public_batches
from splitjax.train.experiment import Experiment, Parts, check, option
from splitjax.train.task import HEADS, SCORES, TASKS, TOWERS, task

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclasses.dataclass
class Finetune(Experiment):
    """Options of a fine-tuning run; the system it stands for is SFT.

    The edge holds the layers before the cut and the texts. The cut lies inside of the
    feed-forward block of one layer (`squeeze=True`), or after any stage (`after`).
    """

    model: str = option("minilm", "'minilm', 'mpnet', or a Hugging Face folder")
    head: str = option("", f"one of {HEADS}; by default after the task's labels")
    pool: str = option("cls", "of a one-text head: 'cls', 'pooler' or 'mean'")
    max_length: int = option(128, "tokens of a text at most; longer ones are cut off")
    data_dir: str = option("", "a folder of GLUE's TSV files, where not the default")
    metric: str = option("", f"one of {tuple(SCORES)}; by default the task's own")
    limit: int = option(0, "training examples at most; 0: all of them")
    dtype: str = option("float32", f"what is computed in: one of {tuple(DTYPES)}")
    squeeze: bool = option(True, "cut inside of a feed-forward block (SFT)")
    layer: int = option(2, "the squeezed layer, from 0; the paper's split is one more")
    rank: int = option(8, "dimensions of the code")
    skip: int = option(0, "dimensions of the low-rank skip; 0: the skip is removed")
    keep_skip: bool = option(False, "send the whole skip beside the code")
    bridge: str = option("svd", "the code: 'svd' of W, or 'pca' of the block's input")
    fit_text: tuple[str, ...] = option(
        ("snli", "rotten_tomatoes"), "public data sets whose texts the code is fit to"
    )
    fit_steps: int = option(0, "steps of distillation on public text; 0: none")
    fit_rate: float = option(5e-4, "the learning rate of distillation")
    after: tuple[str, ...] = option((), "where to cut instead, one place or several")
    label_side: str = option("cloud", "where the labels are: 'cloud' or 'edge'")
    frozen_edge: bool = option(False, "the edge does not learn; no gradient is sent")
    send_once: bool = option(
        False, "with a frozen edge: the cloud keeps what the first epoch sent it"
    )
    forward_bits: int = option(32, "of an activation: 32, 16 (bf16), or 2 to 8")
    backward_bits: int = option(32, "of a gradient, likewise")
    grid: str = option("channel", "what shares a grid: 'token', 'channel' or 'group'")
    ragged: bool = option(True, "leave padding out of the messages")

    OF_THE_CUT: ClassVar[tuple[str, ...]] = (
        *Experiment.OF_THE_CUT,
        *("squeeze", "layer", "rank", "skip", "keep_skip", "bridge", "after", "grid"),
        *("fit_text", "fit_steps", "fit_rate", "label_side", "frozen_edge", "ragged"),
        *("forward_bits", "backward_bits"),
    )

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        check(self.dtype, "dtype", tuple(DTYPES))
        check(self.label_side, "label_side", ("cloud", "edge"))
        check(self.bridge, "bridge", ("svd", "pca"))
        if self.head:
            check(self.head, "head", HEADS)
        if self.metric:
            check(self.metric, "metric", tuple(SCORES))
        if self.send_once and not self.frozen_edge:
            raise ValueError(
                "send_once=True needs frozen_edge=True: an edge that learns has "
                "something new to send in every epoch"
            )
        if self.mode == "split" and not (self.squeeze or self.after):
            raise ValueError(
                "a split run needs a place to cut: squeeze=True, or after=('layer_2',)"
            )

    def parts(self, seed: int) -> Parts:
        """Builds model, cut, links, data and optimizer."""
        table = self._table("train")
        if self.limit:
            table = table.take(self.limit)
        about = task(self.task, table.classes)
        folder = self.folder()
        config = pretrained.read_config(folder)
        head = self._head(table)
        train = self.batches(table, head, seed)
        evals = {
            name: self.batches(self._table(name, table.classes), head, seed)
            for name in about.splits
        }
        first = next(iter(train.epoch(0, micro=self.micro)))[0]
        x = model_inputs(first)
        made = self._head_stages(head, table.classes)
        given = pretrained.load(folder, config)
        stages = bert(config, made, dtype=DTYPES[self.dtype])
        if self.squeezes():
            pairs = table.text_b is not None and head not in TOWERS
            inputs = public_batches(
                self.fit_text,
                data.Tokenizer(folder),
                pairs=pairs,
                types=bool(config.types),
            )
            stages = self._bert(config, made)
            given = self._fitted(config, given, inputs)
        key, spec = jax.random.key(seed), spec_of(x)
        params, state = pretrained.start(stages, given, key=key, spec=spec)
        split = self._split(stages, about.loss)
        steps = train.steps_per_epoch() * self.epochs
        tx = self.tx(min(steps, self.steps) if self.steps else steps)
        exact = self.exact_norm and bool(self.clip)
        owned = split.cut.partition(params)
        return Parts(
            split=split,
            algorithm=split_learning(split, tx, micro=self.micro, exact_norm=exact),
            params=owned,
            state=split.cut.partition(state),
            train=train,
            evals=evals,
            score=SCORES[self.metric or about.metric],
            score_name=self.metric or about.metric,
            baseline_width=config.width if len(split) > 1 else 0,
            setup_bytes=tree_bytes(owned[0]) if len(split) > 1 else 0,
            send_once=self.send_once and len(split) > 1,
            edge_share=edge_share(split.cut, params, state, x),
        )

    def batches(self, table: data.Table, head: str, seed: int) -> data.Batches:
        """A table in the model's tokens, in batches."""
        config = pretrained.read_config(self.folder())
        encoded = data.Tokenizer(self.folder()).encode(
            table,
            max_length=min(self.max_length, config.longest),
            towers=head in TOWERS,
        )
        if not config.types:
            encoded = dataclasses.replace(encoded, types=None)
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
        return found, self.batches(table, self._head(like), 0)

    def squeezes(self) -> bool:
        """Whether this run parts a feed-forward block."""
        return self.mode == "split" and self.squeeze and not self.after

    def folder(self) -> pathlib.Path:
        """The model's folder; a pinned one is fetched where it is missing."""
        if self.model in ("minilm", "mpnet"):
            return data.folder(self.model, fetch=True)
        return pathlib.Path(self.model)

    def link(self) -> Link:
        """The codecs of a cut."""
        padding = (codecs.ragged(),) if self.ragged else ()
        return Link(
            chain(*padding, self._codec(self.forward_bits, "nearest")),
            self._codec(self.backward_bits, "stochastic"),
        )

    def _codec(self, bits: int, rounding: str) -> Codec:
        if bits == 32:
            return codecs.identity()
        if bits == 16:
            return codecs.cast("bf16")
        return codecs.quantize(bits, axis=self.grid, rounding=rounding)

    def _table(self, split: str, classes: int | None = None) -> data.Table:
        given = self.task not in TASKS and not self.task.startswith("tfds:")
        more: dict = {"classes": classes} if given else {}
        return data.load(self.task, split, data_dir=self.data_dir or None, **more)

    def _head(self, table: Any) -> str:
        if self.head:
            return self.head
        if table.classes:
            return "classification"
        return "cosine" if table.text_b is not None else "regression"

    def _head_stages(self, head: str, classes: int) -> tuple[Stage, ...]:
        return {
            "cosine": heads.pair_cosine,
            "regression": lambda: heads.regression(pool=self.pool),
            "classification": lambda: heads.classification(classes, pool=self.pool),
            "pairs": lambda: heads.pairs(classes),
        }[head]()

    def _bert(self, config: BertConfig, head: tuple[Stage, ...]) -> tuple[Stage, ...]:
        skip = "keep" if self.keep_skip else self.skip or None
        squeeze = {self.layer: Squeeze(self.rank, skip=skip, mode=self.bridge)}
        return bert(config, head, squeeze=squeeze, dtype=DTYPES[self.dtype])

    def _fitted(self, config: BertConfig, given: Tree, inputs: Iterator[Tree]) -> Tree:
        """Pretrained parameters of the squeezed model."""
        plain = bert(config, (), dtype=DTYPES[self.dtype])
        skip = "keep" if self.keep_skip else self.skip or None
        squeeze = Squeeze(self.rank, skip=skip, mode=self.bridge)
        if not self.fit_steps and self.bridge == "svd" and not isinstance(skip, int):
            # The weights alone decide: no text is read.
            return fit_squeeze(
                plain, given, {}, {}, layer=self.layer, squeeze=squeeze, inputs=inputs
            )
        x = next(inputs)
        whole = pretrained.start(plain, given, key=jax.random.key(0), spec=spec_of(x))
        fitted = fit_squeeze(
            plain, given, *whole, layer=self.layer, squeeze=squeeze, inputs=inputs
        )
        if not self.fit_steps:
            return fitted
        return distilled(
            plain,
            self._bert(config, ()),
            given,
            fitted,
            link=self.link(),
            inputs=inputs,
            steps=self.fit_steps,
            learning_rate=self.fit_rate,
            about={"texts": self.fit_text, "inputs": sorted(x), "dtype": self.dtype},
        )

    def _split(self, stages: tuple[Stage, ...], loss: Callable) -> Split:
        places: tuple[str, ...] = ()
        if self.mode == "split":
            places = self.after or (f"layer_{self.layer}/squeeze",)
            if len(places) % 2 and self.label_side == "edge":
                places += (stages[-1].name,)
        made = cut(stages, after=places)
        links = [self.link() for _ in places]
        if places and places[-1] == stages[-1].name:
            # Logits and their gradients are few: they cross whole.
            links[-1] = Link(chain(), chain())
        frozen = 1 if self.frozen_edge and places else 0
        return Split(made, tuple(links), loss, frozen)


def narrow(**fields: Any) -> Finetune:
    """The recipe of the SFT configs: a frozen edge, 80 dimensions of 3 bits, no more.

    The code is the input of layer 2's feed-forward block in 80 dimensions, fit to
    public text; 30 bytes a token go up, and nothing comes down.

    Args:
      **fields: of `Finetune`, where they differ.

    Example:
      >>> narrow(task="cola").rank, narrow(task="cola", rank=8).rank
      (80, 8)
    """
    recipe: dict[str, Any] = {
        "layer": 2,
        "bridge": "pca",
        "rank": 80,
        "forward_bits": 3,
        "frozen_edge": True,
        "fit_steps": 1200,
        "fit_rate": 1e-3,
    }
    return Finetune(**{**recipe, **fields})
