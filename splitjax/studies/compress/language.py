"""Compressing a language model: what it costs, what it predicts, before and after."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from splitjax import data
from splitjax.core.tree import Tree, where
from splitjax.data.examples import first_examples
from splitjax.factors.fisher import fisher
from splitjax.models.decoder_config import DecoderConfig
from splitjax.studies.compress.compress import tuned_too
from splitjax.studies.compress.compression import Row, Subject, costs
from splitjax.studies.compress.tuning import FromFactors, Tuning
from splitjax.train.experiment import option
from splitjax.train.language import (
    Language,
    Opened,
    folder_of,
    open_model,
    read_config,
    scorer,
    window_loss,
)
from splitjax.train.next_token import NextToken


@dataclasses.dataclass
class CompressLanguage(Tuning, Language):
    """A pretrained language model, compressed by several methods to several sizes."""

    shares: tuple[float, ...] = option(
        (0.9, 0.8, 0.7), "parts of the matrices' numbers that are kept"
    )
    where: str = option(r"layer_\d+/ffn/.*/kernel", "which matrices, by their path")
    fisher_windows: int = option(32, "windows of the training split it is of")
    fisher_window: int = option(256, "tokens of each")
    fisher_chunk: int = option(1, "windows whose gradients are held at once")
    iterations: int = option(2, "of the solver")
    tune_steps: int = option(100, "steps at most then; 0: as many as the epochs have")
    tune_window: int = option(256, "tokens of the training split read at once then")
    tune_batch: int = option(8, "windows in one step then")
    seed: int = option(0, "of the order of the windows then")

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        self.check_points(
            "fisher_windows", "fisher_window", "tune_window", "tune_batch"
        )

    def tuned(
        self, factor: str, share: float, params: Tree, weights: Tree | None = None
    ) -> FromFactors:
        """The run that trains on from compressed parameters, by stage name."""
        given = {
            "task": self.corpus,
            "model": self.model,
            "mode": "unsplit",
            "tied": read_config(folder_of(self.model)).tied,
            "window": self.tune_window,
            "batch_size": self.tune_batch,
            "eval_limit": self.tune_batch,
            "fisher": f"{self.fisher_windows} windows of {self.fisher_window}",
        }
        point = {"factor": factor, "share": share, "params": params}
        return self.run_from(TunedLanguage, given, **point, weights=weights)


@dataclasses.dataclass
class TunedLanguage(NextToken, FromFactors):
    """A run from compressed parameters; made by `CompressLanguage.tuned`."""

    def _given(self, config: DecoderConfig, key: jax.Array) -> Tree:
        """Where the run starts: all parameters, by stage name."""
        del config, key
        return self.begin


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
      workdir: gets `compress.json` after each point, and the runs of `tune`, which go
        on where they were.

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
    folder = pathlib.Path(workdir)
    return tuned_too(experiment, subject, experiment.seed, folder, facts={})
