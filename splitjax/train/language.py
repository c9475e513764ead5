"""A language model and a corpus: what the one predicts of the other."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from splitjax import data
from splitjax.core.stage import Segment, join
from splitjax.core.tree import Tree
from splitjax.data.batches import model_inputs
from splitjax.metrics.perplexity import nats, next_symbol, perplexity
from splitjax.models import pretrained
from splitjax.models.decoder import decoder
from splitjax.models.decoder_config import DecoderConfig, from_json
from splitjax.models.folder import read_fields
from splitjax.models.gguf_archive import gguf_config, load_gguf
from splitjax.train.experiment import check, option

ARCHIVES = ("smollm2",)


@dataclasses.dataclass
class Language:
    """Which model is scored on what."""

    model: str = option("smollm2", "an archive's name, or a folder of a decoder")
    corpus: str = option("wikitext2", "'wikitext2', 'enwik8' or a text file")
    split: str = option("test", "of the corpus: 'train', 'dev' or 'test'")
    tokens: int = option(16384, "the first so many; all but one are predicted")
    window: int = option(1024, "tokens read at once: what a prediction sees at most")
    batch_size: int = option(1, "windows computed at once")

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        check(self.split, "split", ("train", "dev", "test"))
        for name, least in (("tokens", 2), ("window", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name}={getattr(self, name)}: it must be {least} or more"
                )

    def windows(self, tokenizer: data.Tokenizer) -> data.Windows:
        """What is scored."""
        stream = data.load_stream(
            self.corpus, self.split, tokenizer=tokenizer, count=self.tokens
        )
        return data.Windows(stream, self.batch_size, self.window)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A language model with its weights.

    Attributes:
      model: its stages as one.
      params: by stage name.
      state: by stage name.
      tokenizer: its own.
    """

    model: Segment
    params: Tree
    state: Tree
    tokenizer: data.Tokenizer


def folder_of(name: str) -> pathlib.Path:
    """A decoder's folder.

    Args:
      name: one of `ARCHIVES`, which is fetched where it is missing; or a folder with a
        GGUF archive, or as Hugging Face has it.

    Raises:
      ArchiveError: when an archive cannot be had.

    Example:
      >>> folder_of("mine").name
      'mine'
    """
    if name in ARCHIVES:
        return data.folder(name, fetch=True)
    return pathlib.Path(name)


def _is_archive(folder: pathlib.Path) -> bool:
    return any(folder.glob("*.gguf"))


def read_config(folder: pathlib.Path, *, tied: bool | None = None) -> DecoderConfig:
    """The config of a decoder's folder.

    Args:
      folder: see `folder_of`.
      tied: whether the head reads the embeddings; None: as the folder has it.

    Raises:
      FileNotFoundError: when the folder lacks a file.
      ValueError: for a model that is not built here.
    """
    if _is_archive(folder):
        return gguf_config(folder, tied=tied)
    config = from_json(read_fields(folder))
    return config if tied is None else dataclasses.replace(config, tied=tied)


def read_params(folder: pathlib.Path, config: DecoderConfig) -> Tree:
    """The parameters of a decoder's folder, by stage name.

    Args:
      folder: see `folder_of`.
      config: as `read_config` gives it.

    Raises:
      FileNotFoundError: when the folder lacks a file.
      ValueError: when the two do not fit.
    """
    if _is_archive(folder):
        return load_gguf(folder, tied=config.tied)[1]
    return pretrained.load(folder, config)


def open_model(name: str) -> Opened:
    """A decoder and its tokenizer; see `folder_of`, `read_config` and `read_params`."""
    folder = folder_of(name)
    config = read_config(folder)
    params = read_params(folder, config)
    stages = decoder(config)
    kinds = {"ids": jnp.int32, "mask": jnp.bool_}
    spec = {key: jax.ShapeDtypeStruct((1, 2), kind) for key, kind in kinds.items()}
    params, state = pretrained.start(stages, params, key=jax.random.key(0), spec=spec)
    return Opened(join(stages), params, state, data.Tokenizer(folder))


def scorer(opened: Opened) -> Callable[[Tree, data.Windows], dict[str, float]]:
    """`(params, windows) -> scores`; equal trees and windows share one program.

    The scores are `perplexity`, `nats` of a token, and `tokens`, how many were
    predicted. Each window is read by itself: its first token is predicted from one.
    """

    @jax.jit
    def of_batch(params, x, following):
        y, _, _ = opened.model.apply(params, opened.state, x, key=None, train=False)
        return nats(y, following)

    def score(params: Tree, windows: data.Windows) -> dict[str, float]:
        total, count = 0.0, 0
        for [batch] in windows.epoch(0, shuffle=False):
            more, tokens = of_batch(params, model_inputs(batch), batch["y"])
            total, count = total + float(more), count + int(tokens)
        return {
            "perplexity": perplexity(total, count),
            "nats": total / count,
            "tokens": count,
        }

    return score


def window_loss(opened: Opened) -> Callable[[Tree, Tree], jax.Array]:
    """`(params, window) -> mean nats of a token`, for a Fisher of single windows."""

    def loss(params, window):
        y, _, _ = opened.model.apply(
            params, opened.state, window["x"], key=None, train=False
        )
        return next_symbol(y, window["target"])[0]

    return loss
