"""Fine-tuning a pretrained encoder that is cut at a named place."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from splitjax import codecs, data
from splitjax.algorithms.split import split_learning
from splitjax.core.codec import Codec, Link, chain
from splitjax.core.cut import cut
from splitjax.core.message import tree_bytes
from splitjax.core.split import Split
from splitjax.core.stage import Stage, join
from splitjax.core.tree import Tree, nearest, spec_of
from splitjax.factors.low_rank import squeeze_params
from splitjax.factors.principal import principal
from splitjax.metrics import loss, score
from splitjax.metrics.flops import flops
from splitjax.models import heads, pretrained
from splitjax.models.bert import bert
from splitjax.models.bert_config import BertConfig
from splitjax.models.squeeze import Squeeze
from splitjax.train.experiment import Experiment, Parts, check, option

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
SCORES: dict[str, Callable] = {
    "spearman": score.spearman,
    "pearson": score.pearson,
    "accuracy": score.accuracy,
    "matthews": score.matthews,
    "f1": score.f1,
}
HEADS = ("cosine", "regression", "classification", "pairs")
# What a task is scored by where the config does not say, and its data splits.
TASKS = {
    "stsb": ("spearman", ("dev", "test")),
    "cola": ("matthews", ("dev",)),
    "mrpc": ("accuracy", ("dev",)),
    "rte": ("accuracy", ("dev",)),
    "sst2": ("accuracy", ("dev",)),
}


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
    fit_examples: int = option(512, "training texts that principal directions are from")
    after: tuple[str, ...] = option((), "where to cut instead, one place or several")
    label_side: str = option("cloud", "where the labels are: 'cloud' or 'edge'")
    frozen_edge: bool = option(False, "the edge does not learn; no gradient is sent")
    forward_bits: int = option(32, "of an activation: 32, 16 (bf16), or 2 to 8")
    backward_bits: int = option(32, "of a gradient, likewise")
    grid: str = option("channel", "what shares a grid: 'token', 'channel' or 'group'")
    ragged: bool = option(True, "leave padding out of the messages")

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
        if self.mode == "split" and not (self.squeeze or self.after):
            raise ValueError(
                "a split run needs a place to cut: squeeze=True, or after=('layer_2',)"
            )

    def parts(self, seed: int) -> Parts:
        """Builds model, cut, links, data and optimizer."""
        table = self._table("train")
        if self.limit:
            table = table.take(self.limit)
        metric, splits = TASKS.get(self.task, ("", ("dev",)))
        metric = self.metric or metric or ("accuracy" if table.classes else "spearman")
        folder = self.folder()
        config = pretrained.read_config(folder)
        head = self._head(table)
        towers = head in ("cosine", "pairs")
        tokenizer = data.Tokenizer(folder)

        def batches(table):
            encoded = tokenizer.encode(
                table, max_length=min(self.max_length, config.longest), towers=towers
            )
            return data.Batches(
                encoded, self.batch_size, seed=seed, group_by_length=True
            )

        train = batches(table)
        evals = {name: batches(self._table(name)) for name in splits}
        first = next(iter(train.epoch(0, micro=self.micro)))[0]
        x = {k: first[k] for k in ("ids", "mask", "types") if k in first}
        if not config.types:
            x.pop("types", None)
        key = jax.random.key(seed)
        stages, params, state, setup = self._model(config, head, table, x, train, key)
        split = self._split(stages, table)
        setup += tree_bytes(split.cut.partition(params)[0]) if len(split) > 1 else 0
        steps = train.steps_per_epoch() * self.epochs
        tx = self.tx(min(steps, self.steps) if self.steps else steps)
        return Parts(
            split=split,
            algorithm=split_learning(
                split,
                tx,
                micro=self.micro,
                exact_norm=self.exact_norm and bool(self.clip),
            ),
            params=split.cut.partition(params),
            state=split.cut.partition(state),
            train=train,
            evals=evals,
            score=SCORES[metric],
            score_name=metric,
            baseline_width=config.width if len(split) > 1 else 0,
            setup_bytes=setup,
            edge_share=edge_share(split, params, state, x),
        )

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

    def _table(self, split: str) -> Any:
        return data.load(self.task, split, data_dir=self.data_dir or None)

    def _head(self, table: Any) -> str:
        if self.head:
            return self.head
        if table.classes:
            return "classification"
        return "cosine" if table.text_b is not None else "regression"

    def _stages(self, config: BertConfig, head: str, classes: int, squeeze) -> tuple:
        made = {
            "cosine": heads.pair_cosine,
            "regression": lambda: heads.regression(pool=self.pool),
            "classification": lambda: heads.classification(classes, pool=self.pool),
            "pairs": lambda: heads.pairs(classes),
        }[head]()
        return bert(config, made, squeeze=squeeze, dtype=DTYPES[self.dtype])

    def _model(self, config, head, table, x, train, key):
        """Stages, parameters, state, and the bytes that fitting them sends."""
        spec = spec_of(x)
        given = pretrained.load(self.folder(), config)
        plain = self._stages(config, head, table.classes, None)
        if self.mode == "unsplit" or self.after or not self.squeeze:
            return plain, *pretrained.start(plain, given, key=key, spec=spec), 0
        skip = "keep" if self.keep_skip else self.skip or None
        squeeze = Squeeze(self.rank, skip=skip, mode=self.bridge)
        stages = self._stages(config, head, table.classes, {self.layer: squeeze})
        block = f"layer_{self.layer}/ffn"
        width = self.rank if self.bridge == "pca" else self.skip
        mean = basis = None
        if width:
            params, state = pretrained.start(plain, given, key=key, spec=spec)
            rows = activations(
                plain, params, state, block, train, self.fit_examples, x.keys()
            )
            mean, basis, _ = principal(rows, width)
        sent = 0 if basis is None else 4 * (basis.size + mean.size)
        edge, cloud = squeeze_params(
            given.pop(block),
            self.rank,
            skip=skip,
            mode=self.bridge,
            mean=mean,
            basis=basis,
        )
        given[f"layer_{self.layer}/squeeze"] = edge
        given[f"layer_{self.layer}/expand"] = cloud
        return stages, *pretrained.start(stages, given, key=key, spec=spec), sent

    def _split(self, stages: tuple[Stage, ...], table: Any) -> Split:
        function = loss.cross_entropy if table.classes else loss.squared_error
        if self.task == "stsb":
            function = unit_squared_error
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
        return Split(made, tuple(links), function, frozen)


def unit_squared_error(y: jax.Array, target: dict) -> tuple[jax.Array, dict]:
    """The squared error of a similarity from 0 to 1, of labels from 0 to 5.

    Example:
      >>> import jax.numpy as jnp
      >>> target = {"y": jnp.array([5.0]), "n_valid": jnp.int32(1)}
      >>> float(unit_squared_error(jnp.array([1.0]), target)[0])
      0.0
    """
    return loss.squared_error(y, {**target, "y": target["y"] / 5})


def activations(
    stages: tuple[Stage, ...],
    params: Tree,
    state: Tree,
    before: str,
    batches: Any,
    examples: int,
    names: Any,
) -> np.ndarray:
    """Rows (N, D) that enter a stage, of the real tokens of some training texts.

    Raises:
      ValueError: when no stage has that name; the stages are listed.
    """
    known = [stage.name for stage in stages]
    if before not in known:
        raise ValueError(f"no stage {before!r}: {nearest(before, known)}")
    front = join(stages[: known.index(before)])
    run = jax.jit(lambda p, s, x: front.apply(p, s, x, key=None, train=False)[0]["h"])
    rows, seen = [], 0
    for group in batches.epoch(0):
        for batch in group:
            x = {name: batch[name] for name in names}
            h = run(
                {s.name: params[s.name] for s in front.stages},
                {s.name: state[s.name] for s in front.stages},
                x,
            )
            rows.append(np.asarray(h, np.float32)[batch["mask"]])
            seen += int(batch["n_valid"])
        if seen >= examples:
            break
    return np.concatenate(rows)


def edge_share(split: Split, params: Tree, state: Tree, x: Tree) -> float:
    """The edge's part of the floating-point operations of a forward pass."""
    own, total, spec = 0.0, 0.0, spec_of(x)
    for segment, owner, p, s in zip(
        split.cut.segments,
        split.cut.owners,
        split.cut.partition(params),
        split.cut.partition(state),
        strict=True,
    ):

        def run(p, s, x, segment=segment):
            return segment.apply(p, s, x, key=None, train=False)[0]

        count = flops(run, p, s, spec) if segment.stages else 0.0
        spec = jax.eval_shape(run, p, s, spec)
        total += count
        own += count if owner == "edge" else 0.0
    return own / total if total else 1.0
