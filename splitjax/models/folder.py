"""A Hugging Face folder: its config.json and its tensors in safetensors."""

import json
import pathlib
import re
from typing import Any

import numpy as np
from safetensors import safe_open

from splitjax.models.bert_config import BertConfig, from_json

PREFIXES = ("bert.", "mpnet.", "transformer.", "model.", "vit.")
# What older versions of the library saved: positions, masks, frequencies, and T5's
# one table of embeddings two more times.
NOT_WEIGHTS = re.compile(
    r"embeddings\.position_ids|h\.\d+\.attn\.(masked_)?bias|.*\.rotary_emb\.inv_freq"
    r"|(en|de)coder\.embed_tokens\.weight"
)
# Names from the years before 2019, which bert-base-uncased still has.
RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def read_fields(folder: str | pathlib.Path) -> dict[str, Any]:
    """The fields of a folder's config.json.

    Raises:
      FileNotFoundError: when it has none.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> _ = pathlib.Path(folder, "config.json").write_text('{"model_type": "gpt2"}')
      >>> read_fields(folder)
      {'model_type': 'gpt2'}
    """
    return json.loads(_file(folder, "config.json").read_text())


def read_config(folder: str | pathlib.Path) -> BertConfig:
    """The config of a BERT-family folder.

    Args:
      folder: has a config.json.

    Raises:
      FileNotFoundError: when it has none.
      ValueError: see `bert_config.from_json`.

    Example:
      >>> import tempfile
      >>> from splitjax.models.bert_config import to_json
      >>> folder = tempfile.mkdtemp()
      >>> fields = to_json(BertConfig(layers=2))
      >>> _ = pathlib.Path(folder, "config.json").write_text(json.dumps(fields))
      >>> read_config(folder).layers
      2
    """
    return from_json(read_fields(folder))


def read_tensors(folder: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a folder but buffers, under their newest names, unprefixed.

    Args:
      folder: has model.safetensors, or its shards and their index.

    Returns:
      Arrays as they are stored: a dense weight is (out, in).

    Raises:
      FileNotFoundError: when a file is missing.

    Example:
      >>> import tempfile
      >>> import safetensors.numpy
      >>> folder = tempfile.mkdtemp()
      >>> safetensors.numpy.save_file({"bert.encoder.LayerNorm.gamma": np.ones(2)},
      ...     pathlib.Path(folder, "model.safetensors"))
      >>> read_tensors(folder)
      {'encoder.LayerNorm.weight': array([1., 1.])}
    """
    index = pathlib.Path(folder, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    out = {}
    for file in files:
        with safe_open(_file(folder, file), "np") as reader:
            for name in reader.keys():
                short = name
                for prefix in PREFIXES:
                    short = short.removeprefix(prefix)
                for old, new in RENAMED.items():
                    short = short.replace(old, new)
                if not NOT_WEIGHTS.fullmatch(short):
                    out[short] = reader.get_tensor(name)
    return out


def _file(folder: str | pathlib.Path, name: str) -> pathlib.Path:
    path = pathlib.Path(folder, name)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{path.parent} is no folder; pass one with config.json and "
            "model.safetensors, or run `make data`"
        )
    if not path.exists():
        raise FileNotFoundError(f"{path.parent} has no {name}")
    return path
