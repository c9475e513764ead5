"""Compressing a language model: what it costs, what it predicts, before and after."""

import dataclasses
import json
import logging
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp

from splitjax import data
from splitjax.core.factor import materialize
from splitjax.core.message import tree_bytes
from splitjax.core.tree import Tree, spec_of, where
from splitjax.factors.fisher import fisher
from splitjax.metrics.flops import flops
from splitjax.train.compress import Row, errors, fitted
from splitjax.train.compress_options import METHODS
from splitjax.train.experiment import check, option
from splitjax.train.language import (
    Language,
    Opened,
    examples,
    open_model,
    scorer,
    window_loss,
)
from splitjax.train.report import versions


@dataclasses.dataclass
class CompressLanguage(Language):
    """A pretrained language model, compressed by several methods to several sizes."""

    factors: tuple[str, ...] = option(
        ("svd", "fwsvd", "wsvd"), f"by what: some of {tuple(METHODS)}"
    )
    shares: tuple[float, ...] = option(
        (0.9, 0.8, 0.7), "parts of the matrices' numbers that are kept"
    )
    where: str = option(r"layer_\d+/ffn/.*/kernel", "which matrices, by their path")
    fisher_windows: int = option(32, "windows of the training split it is of")
    fisher_window: int = option(256, "tokens of each")
    fisher_chunk: int = option(1, "windows whose gradients are held at once")
    solver: str = option("als", "of wsvd: 'als', 'em' or 'adam_sgd'")
    iterations: int = option(2, "of the solver")

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        check(self.solver, "solver", ("als", "em", "adam_sgd"))
        for name in self.factors:
            check(name, "factors", tuple(METHODS))
        if not self.factors or not self.shares:
            raise ValueError("factors and shares name one thing each at least")
        for share in self.shares:
            if not 0 < share <= 1:
                raise ValueError(f"shares has {share}: each is from 0 to 1")
        counts = ("fisher_windows", "fisher_window", "fisher_chunk", "iterations")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be 1 or more")


def measured(experiment: CompressLanguage, opened: Opened) -> Tree:
    """The Fisher of the chosen matrices on the first windows of the training split."""
    count = experiment.fisher_windows * experiment.fisher_window + 1
    stream = data.load_stream(
        experiment.corpus, "train", tokenizer=opened.tokenizer, count=count
    )
    windows = data.Windows(stream, experiment.fisher_chunk, experiment.fisher_window)
    return fisher(
        window_loss(opened),
        opened.params,
        examples(windows, experiment.fisher_windows),
        where=where(experiment.where),
        chunk=experiment.fisher_chunk,
    )


def compress_language(
    experiment: CompressLanguage, workdir: str | pathlib.Path
) -> list[Row]:
    """Scores a model, and compresses it each way.

    Factors are made dense for a score, so that every size runs the program of the
    first: the function is the same but for rounding, and its speed is not measured.

    Args:
      experiment: what to do.
      workdir: gets `compress.json` after each point.

    Returns:
      A row for the dense model and for each point, as `train.compress` has them:
      `value` is the perplexity, `flops` are of one token.

    Raises:
      ValueError: for options that make no sense, or as `factorize` does.
    """
    experiment.validate()
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    opened = open_model(experiment.model)
    dense, windows = opened.params, experiment.windows(opened.tokenizer)
    score = scorer(opened)
    before = score(dense, windows)
    unit = f"{experiment.split} perplexity"
    same = {"before": before["perplexity"], "unit": unit, "tuned": None}
    first = {"name": "dense", "factor": "", "share": 1.0, "fit_seconds": 0.0}
    first |= {"error": 0.0, "weighted_error": 0.0, "scores": before}
    first |= {"value": before["perplexity"], **costs(opened, dense, windows.length)}
    made: list[Row] = [{**first, **same, **versions()}]
    logging.info("dense: %s", before)
    weights = None
    if any(METHODS[factor].weighted for factor in experiment.factors):
        began = time.monotonic()
        weights = measured(experiment, opened)
        logging.info("the Fisher took %.0f s", time.monotonic() - began)
    # Methods read the options that `Compress` and this experiment have in common.
    options: Any = experiment
    for share in experiment.shares:
        for factor in experiment.factors:
            began = time.monotonic()
            new = fitted(options, dense, weights, factor, share)
            row: Row = {"name": f"{factor} {share:.0%}", "factor": factor}
            row |= {"share": share, "fit_seconds": time.monotonic() - began, **same}
            plain, weighted = errors(dense, new, weights)
            row |= {"error": plain, "weighted_error": weighted}
            scores = score(materialize(new), windows)
            row |= {"value": scores["perplexity"], "scores": scores}
            made.append({**row, **costs(opened, new, windows.length)})
            logging.info("%s: %s", row["name"], scores)
            (folder / "compress.json").write_text(json.dumps(made, indent=2) + "\n")
    return made


def costs(opened: Opened, params: Tree, tokens: int) -> dict[str, Any]:
    """Numbers, bytes, and operations of a token where so many are read at once."""

    def forward(params, x):
        return opened.model.apply(params, opened.state, x, key=None, train=False)[0]

    kinds = {"ids": jnp.int32, "mask": jnp.bool_}
    x = {k: jax.ShapeDtypeStruct((1, tokens), kind) for k, kind in kinds.items()}
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "bytes": tree_bytes(params),
        "flops": flops(forward, spec_of(params), x) / tokens,
    }
