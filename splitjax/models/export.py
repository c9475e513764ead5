"""A trained model as a Hugging Face folder."""

import json
import pathlib
import shutil
from typing import Any

import safetensors.numpy

from splitjax.core.factor import materialize
from splitjax.core.tree import Tree
from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.families import family_of
from splitjax.models.folder import read_tensors
from splitjax.models.name_table import tensors_of
from splitjax.models.rope import halved

# Copied from the folder that the weights came from, when it has them.
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


def save(
    folder: str | pathlib.Path,
    config: Any,
    params: Tree,
    *,
    source: str | pathlib.Path | None = None,
) -> None:
    """Writes a dense model as a Hugging Face folder.

    Args:
      folder: is made when it is not there.
      config: the model's, of a family in `families.FAMILIES`.
      params: by stage name. Factors are written as the dense leaves they stand for.
        Heads of the BERT family are not written, their place is a checkpoint; a head of
        the model's own (a decoder's, T5's, ViT's) is.
      source: the folder that the model came from. Its tokenizer is copied, and what
        `config` and `params` do not hold of its config.json and its tensors.

    Raises:
      ValueError: for squeezed parameters, or when a leaf is missing.

    Example:
      >>> from splitjax.models.bert_config import BertConfig
      >>> save("/tmp/x", BertConfig(), {"layer_3/squeeze": {}})
      Traceback (most recent call last):
      ...
      ValueError: layer_3/squeeze is squeezed: merge the parameters with ...
    """
    for name in params:
        if name.endswith(("/squeeze", "/expand")):
            raise ValueError(
                f"{name} is squeezed: merge the parameters with "
                "factors.low_rank.merge first; a folder holds a dense model"
            )
    params = materialize(params)
    if isinstance(config, DecoderConfig):
        config, params = halved(config, params)
    family = family_of(config.family)
    table = [
        entry
        for entry in family.entries(config)
        if entry.stage not in family.optional
        or entry.path[0] in params.get(entry.stage, {})
    ]
    tensors = dict(read_tensors(source)) if source else {}
    new = tensors_of(table, params)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fields = family.to_json(config)
    if source:
        for name in TOKENIZER:
            if pathlib.Path(source, name).exists():
                shutil.copyfile(pathlib.Path(source, name), folder / name)
        fields = json.loads(pathlib.Path(source, "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    safetensors.numpy.save_file(
        tensors | new, folder / "model.safetensors", {"format": "pt"}
    )
