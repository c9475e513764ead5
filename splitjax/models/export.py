"""A trained model as a Hugging Face folder."""

import json
import pathlib
import shutil
from typing import Any

import numpy as np
import safetensors.numpy

from splitjax.core.factor import materialize
from splitjax.core.tree import Tree
from splitjax.models.bert_config import BertConfig, to_json
from splitjax.models.folder import read_tensors
from splitjax.models.name_table import Entry, entries

# Copied from the folder that the weights came from, when it has them.
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


def save(
    folder: str | pathlib.Path,
    config: BertConfig,
    params: Tree,
    *,
    source: str | pathlib.Path | None = None,
) -> None:
    """Writes a dense model as a Hugging Face folder.

    Args:
      folder: is made when it is not there.
      config: the model's.
      params: by stage name. Factors are written as the dense leaves they stand for. A
        head is not written: its place is a checkpoint.
      source: the folder that the model came from. Its tokenizer is copied, and what
        `config` and `params` do not hold of its config.json and its tensors.

    Raises:
      ValueError: for squeezed parameters, or when a leaf is missing.

    Example:
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
    tensors = dict(read_tensors(source)) if source else {}
    seen: dict[str, np.ndarray] = {}
    for entry in entries(config):
        if entry.stage == "pool" and "pooler" not in params.get("pool", {}):
            continue
        array = np.asarray(_leaf(params, entry))
        array = np.ascontiguousarray(array.T if entry.turned else array)
        if entry.tensor in seen and (seen[entry.tensor] != array).any():
            raise ValueError(
                f"{entry.stage}/{'/'.join(entry.path)} differs from another layer's "
                "copy; the folder holds one for all"
            )
        seen[entry.tensor] = array
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fields = to_json(config)
    if source:
        for name in TOKENIZER:
            if pathlib.Path(source, name).exists():
                shutil.copyfile(pathlib.Path(source, name), folder / name)
        fields = json.loads(pathlib.Path(source, "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    safetensors.numpy.save_file(
        tensors | seen, folder / "model.safetensors", {"format": "pt"}
    )


def _leaf(params: Tree, entry: Entry) -> Any:
    node = params
    for part in (entry.stage, *entry.path):
        if not isinstance(node, dict) or part not in node:
            raise ValueError(
                f"save misses the leaf {entry.stage}/{'/'.join(entry.path)}"
            )
        node = node[part]
    return node
