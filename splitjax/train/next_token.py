"""Training a decoder, cut at a named place, to predict the next token of a text."""

import dataclasses
import logging
from collections.abc import Callable
from typing import ClassVar

import jax
import numpy as np

from splitjax import data
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree
from splitjax.data.batches import model_inputs
from splitjax.metrics.perplexity import bits, next_symbol, perplexity, row_nats
from splitjax.models.decoder import decoder
from splitjax.models.decoder_config import DecoderConfig
from splitjax.train.cut_experiment import DTYPES, check_fused
from splitjax.train.experiment import Parts, check, option
from splitjax.train.expert_options import ExpertOptions
from splitjax.train.language import folder_of, read_config, read_params
from splitjax.train.task import Task

HELD_OUT = ("dev", "test")


def _of_all(figure: Callable[[float, int], float]) -> Callable:
    """A figure of all symbols, from the nats and the counts of rows."""
    return lambda nats, counts: figure(nats.sum(dtype=np.float64), int(counts.sum()))


@dataclasses.dataclass
class NextToken(ExpertOptions):
    """A language model's run on one long text, and how its parts are built.

    The labels are the text itself, one token on. With one cut they cross to the cloud;
    with two, as after=("layer_1", "layer_28"), the edge has both ends, and the text
    stays there. A summary's `baseline_bytes` are those of the same cuts in float32.
    """

    task: str = option("wikitext2", "'wikitext2', 'enwik8' or a text file")
    model: str = option("smollm2", "'smollm2', or the folder of a decoder")
    metric: str = option("perplexity", "of the next token: 'perplexity', or 'bits'")
    tied: bool = option(
        False, "the head reads the embeddings; only without a cut. False: it has a copy"
    )
    fused: str = option(
        "",
        "layers compute by splitjax.kernels: 'xla', or 'auto' (Pallas off the CPU; no "
        "mesh then); gpt2 only",
    )
    window: int = option(256, "tokens read at once: what a prediction sees at most")
    limit: int = option(0, "training windows at most; 0: all of them")
    eval_limit: int = option(64, "windows of a split to score on at most; 0: all")
    score_on: tuple[str, ...] = option(("dev",), f"splits to score on, of {HELD_OUT}")

    SCORES: ClassVar[dict[str, Callable]] = {
        "perplexity": _of_all(perplexity),
        "bits": _of_all(bits),
    }

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        check(self.metric, "metric", tuple(self.SCORES))
        check_fused(self.fused, self.mesh)
        for name, least in (("window", 1), ("limit", 0), ("eval_limit", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name}={getattr(self, name)}: it must be {least} or more"
                )
        for name in self.score_on:
            check(name, "score_on", HELD_OUT)
        if not self.score_on:
            raise ValueError(f"score_on is empty: give one at least of {HELD_OUT}")
        if self.mode != "unsplit" and not self.after:
            raise ValueError("a split run needs a place to cut, as after=('layer_2',)")
        if self.scrutinize:
            raise ValueError(
                "scrutinize=True compares gradients of examples with one class each, "
                "and a text has a label a token: take scrutinize=False"
            )
        if self.mode != "unsplit" and self.tied:
            raise ValueError(
                "tied=True: a leaf has one owner, so that a cut model's head has a "
                "copy of the embeddings; take tied=False, or mode='unsplit'"
            )

    def parts(self, seed: int, *, weights: bool = True) -> Parts:
        """Builds model, cut, links, data and optimizer."""
        tokenizer = self._tokenizer()
        train = self._windows("train", self.limit, seed, tokenizer)
        evals = {
            name: self._windows(name, self.eval_limit, seed, tokenizer)
            for name in self.score_on
        }
        facts = {"steps_per_epoch": train.steps_per_epoch()}
        [first, *_] = next(iter(train.epoch(0, micro=self.micro)))
        made = self.model_parts(seed, facts, model_inputs(first), weights=weights)
        if made.split.cut.owners[-1] == "cloud":
            logging.warning(
                "the cloud is told the next tokens, which are the text: to keep it at "
                "the edge, cut twice, as after=('layer_1', 'layer_28')"
            )
        return dataclasses.replace(made, train=train, evals=evals, facts=facts)

    def model_parts(
        self, seed: int, facts: dict, x: Tree, *, weights: bool = True
    ) -> Parts:
        """All parts but the data: what a cloud builds, who has not seen it."""
        config = read_config(folder_of(self.model), tied=self.tied)
        config = dataclasses.replace(config, fused=self.fused)
        stages = self.stages(config)

        def given():
            return self._given(config, jax.random.key(seed)), {}

        params, state = self.started(stages, seed, x, given if weights else None)
        made = self.parts_of(
            self.split_of(stages, next_symbol),
            params,
            state,
            x,
            seed=seed,
            about=Task(self.metric, self.score_on, next_symbol),
            steps_per_epoch=facts["steps_per_epoch"],
            width=config.width * len(self.places()),
        )
        return dataclasses.replace(made, rows=jax.jit(row_nats), lower_is_better=True)

    def stages(self, config: DecoderConfig) -> tuple[Stage, ...]:
        """The model, from tokens to logits."""
        return self.with_experts(decoder(config, dtype=DTYPES[self.dtype]), config)

    def texts(self, path: str) -> tuple[list, data.Windows]:
        """Texts of the user's, and their batches; a prediction is the nats of a text.

        Each is read by itself, up to the length of a window and the token after it; its
        first token is not predicted.

        Raises:
          DataError: for a bad file, or a text of less than two tokens.
        """
        texts, second = data.read_texts(path)
        tokenizer = self._tokenizer()
        rows = [tokenizer.ids(text)[: self.window + 1] for text in texts]
        if second is not None or min(map(len, rows)) < 2:
            raise data.DataError(f"{path}: give one text a line, of two tokens or more")
        stream = data.Stream(path, "predict", np.concatenate(rows), tokenizer.vocab)
        ends = np.cumsum([len(row) for row in rows])
        spans = np.stack([ends - [len(row) for row in rows], ends - 1], 1)
        return texts, data.Windows(stream, self.batch_size, self.window, spans=spans)

    def check_facts(self, facts: dict) -> None:
        """Raises a ValueError for facts that no data of this experiment has."""
        steps = facts.get("steps_per_epoch")
        if set(facts) != {"steps_per_epoch"} or type(steps) is not int or steps < 1:
            raise ValueError(
                f"the facts of a text are steps_per_epoch, 1 or more: {facts}"
            )

    def check_batch(self, batch: Tree) -> None:
        """Raises a ValueError for specs of a batch that this experiment has not."""
        x = batch["x"]
        # A micro-batch in training; whole batches are predicted for.
        sizes = {-(-self.batch_size // self.micro), self.batch_size}
        kinds = {"ids": np.int32, "mask": np.bool_}
        if not (isinstance(x, dict) and set(x) == set(kinds)):
            raise ValueError(f"an input has ids and mask: {x!s:.200}")
        for name, leaf in x.items():
            if leaf.dtype != kinds[name] or leaf.shape != x["ids"].shape:
                raise ValueError(f"x/{name}: {leaf}, beside ids {x['ids'].shape}")
        if x["ids"].shape not in {(size, self.window) for size in sizes}:
            raise ValueError(
                f"x/ids has {sorted(sizes)} rows of {self.window} tokens: {x['ids']}"
            )
        self.check_target(batch, self.window)

    def label_range(self, facts: dict) -> tuple[int, int]:
        """Symbols, and -1 where nothing is predicted."""
        del facts
        return -1, read_config(folder_of(self.model), tied=self.tied).vocab

    def _given(self, config: DecoderConfig, key: jax.Array) -> Tree:
        """Pretrained parameters, by stage name; experts are copies of the blocks."""
        return self.upcycled(read_params(folder_of(self.model), config), config, key)

    def _tokenizer(self) -> data.Tokenizer:
        folder = folder_of(self.model)
        tokenizer = data.Tokenizer(folder)
        vocab = read_config(folder, tied=self.tied).vocab
        if tokenizer.vocab > vocab:
            raise ValueError(
                f"{folder}: its tokenizer knows {tokenizer.vocab} tokens, and its "
                f"model {vocab}"
            )
        return tokenizer

    def _windows(
        self, split: str, limit: int, seed: int, tokenizer: data.Tokenizer
    ) -> data.Windows:
        count = limit * self.window + 1 if limit else None
        stream = data.load_stream(
            self.task, split, tokenizer=tokenizer, count=count, fewer=True
        )
        return data.Windows(
            stream, self.batch_size, self.window, seed=seed, fixed=self.send_once
        )
