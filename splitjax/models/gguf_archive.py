"""A decoder of the Llama form from a GGUF archive, its blocks made float32."""

import functools
import pathlib
from typing import Any

import numpy as np

from splitjax.core.tree import Tree
from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.decoder_table import gguf_entries
from splitjax.models.name_table import leaves_of


def gguf_config(path: str | pathlib.Path, *, tied: bool | None = None) -> DecoderConfig:
    """The config of an archive, read without its tensors; see `load_gguf`.

    A file is parsed once until it changes: its whole vocabulary comes with the facts.

    Example:
      >>> gguf_config("/nowhere")
      Traceback (most recent call last):
      ...
      FileNotFoundError: there is no GGUF file at /nowhere: ...
    """
    file = _one(path).absolute()
    return _read_config(file, file.stat().st_mtime_ns, tied)


@functools.lru_cache
def _read_config(
    file: pathlib.Path, changed_ns: int, tied: bool | None
) -> DecoderConfig:
    import gguf

    del changed_ns  # a part of the key alone
    return _config(file, gguf.GGUFReader(file), tied)


def load_gguf(
    path: str | pathlib.Path, *, tied: bool | None = None
) -> tuple[DecoderConfig, Tree]:
    """The config and the parameters of an archive.

    Args:
      path: the file, or a folder with one such file.
      tied: whether the head reads the embedding's table; by default as the archive has
        it. False gives the head a copy, so that the model can be cut anywhere.

    Returns:
      The config, whose rotary pairs are `interleaved`, as such archives store them, and
      float32 parameters by stage name.

    Raises:
      FileNotFoundError: when there is no such file.
      ValueError: for a model that is not of the Llama form, an option of it that is not
        built here, or tensors that do not fit.

    Example:
      >>> load_gguf("/nowhere")
      Traceback (most recent call last):
      ...
      FileNotFoundError: there is no GGUF file at /nowhere: ...
    """
    import gguf

    reader = gguf.GGUFReader(_one(path))
    config = _config(path, reader, tied)
    table = gguf_entries(config)
    known = {name for entry in table for name in (entry.tensor, entry.instead)}
    names = {tensor.name for tensor in reader.tensors}
    if strange := sorted(names - known):
        raise ValueError(f"{path} has tensors of no part of the model: {strange}")
    tensors: dict[str, np.ndarray] = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
    }
    return config, leaves_of(table, tensors)


def _config(path: str | pathlib.Path, reader: Any, tied: bool | None) -> DecoderConfig:
    facts = _Facts(reader.fields)
    shapes = {tensor.name: tensor.shape for tensor in reader.tensors}
    if "rope_freqs.weight" in shapes or facts.get("rope.scaling.type", "none") != (
        "none"
    ):
        raise ValueError(f"{path} scales its rotary positions; that is not built here")
    if (vocab := shapes.get("token_embd.weight")) is None:
        raise ValueError(f"{path} has no tensor token_embd.weight: no embeddings")
    has_head = "output.weight" in shapes
    if tied and has_head:
        raise ValueError(f"{path} has a head of its own: it cannot be tied")
    config = DecoderConfig(
        vocab=int(vocab[1]),  # such shapes begin with the fastest axis
        width=facts["embedding_length"],
        heads=facts["attention.head_count"],
        kv_heads=facts.get("attention.head_count_kv", facts["attention.head_count"]),
        layers=facts["block_count"],
        ffn=facts["feed_forward_length"],
        positions=facts["context_length"],
        eps=facts["attention.layer_norm_rms_epsilon"],
        rope_base=facts.get("rope.freq_base", 1e4),
        interleaved=True,
        tied=not has_head if tied is None else tied,
    )
    for name in ("rope.dimension_count", "attention.key_length"):
        if facts.get(name, config.head_width) != config.head_width:
            raise ValueError(
                f"{path} has {name} {facts[name]}; only {config.head_width}, the width "
                "by the heads, is built here"
            )
    return config


def _one(path: str | pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(path)
    found = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
    if len(found) != 1 or not found[0].is_file():
        raise FileNotFoundError(
            f"there is no GGUF file at {path}: run "
            "`python -m splitjax.data.fetch smollm2`, or give the file"
        )
    return found[0]


class _Facts:
    """The archive's facts about its model, by their names without "llama."."""

    def __init__(self, fields: dict[str, Any]):
        self._fields = fields
        kind = fields["general.architecture"].contents()
        if kind != "llama":
            raise ValueError(f"a GGUF archive of {kind!r}: only 'llama' is built here")

    def get(self, name: str, default: Any) -> Any:
        field = self._fields.get(f"llama.{name}")
        return default if field is None else field.contents()

    def __getitem__(self, name: str) -> Any:
        if f"llama.{name}" not in self._fields:
            raise ValueError(f"the GGUF archive does not tell its llama.{name}")
        return self.get(name, None)
