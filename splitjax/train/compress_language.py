"""Compressing a language model: what it costs, what it predicts, before and after."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from splitjax import data
from splitjax.core.tree import Tree, where
from splitjax.data.examples import first_examples
from splitjax.factors.fisher import fisher
from splitjax.train.compression import Compression, Row, Subject, compressed, costs
from splitjax.train.experiment import option
from splitjax.train.language import Language, Opened, open_model, scorer, window_loss


@dataclasses.dataclass
class CompressLanguage(Compression, Language):
    """A pretrained language model, compressed by several methods to several sizes."""

    shares: tuple[float, ...] = option(
        (0.9, 0.8, 0.7), "parts of the matrices' numbers that are kept"
    )
    where: str = option(r"layer_\d+/ffn/.*/kernel", "which matrices, by their path")
    fisher_windows: int = option(32, "windows of the training split it is of")
    fisher_window: int = option(256, "tokens of each")
    fisher_chunk: int = option(1, "windows whose gradients are held at once")
    iterations: int = option(2, "of the solver")

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        self.check_points("fisher_windows", "fisher_window")


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
        first_examples(windows.epoch(0, shuffle=False), experiment.fisher_windows),
        where=where(experiment.where),
        chunk=experiment.fisher_chunk,
    )


def compress_language(
    experiment: CompressLanguage, workdir: str | pathlib.Path
) -> list[Row]:
    """Scores a model, and compresses it each way.

    Args:
      experiment: what to do.
      workdir: gets `compress.json` after each point.

    Returns:
      Rows as `compression.compressed` has them: `value` is the perplexity, `flops` are
      of one token of a window.

    Raises:
      ValueError: for options that make no sense, or as `factorize` does.
    """
    experiment.validate()
    opened = open_model(experiment.model)
    windows = experiment.windows(opened.tokenizer)
    score, length = scorer(opened), windows.length
    kinds = {"ids": jnp.int32, "mask": jnp.bool_}
    x = {k: jax.ShapeDtypeStruct((1, length), kind) for k, kind in kinds.items()}
    subject = Subject(
        opened.params,
        score=lambda params: score(params, windows),
        costs=lambda params: costs(opened.model, params, opened.state, x, length),
        fisher=lambda: measured(experiment, opened),
        name="perplexity",
        unit=f"{experiment.split} perplexity",
    )
    return compressed(experiment, subject, pathlib.Path(workdir), facts={})
