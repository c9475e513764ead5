"""Pretrained weights: parameters by stage name from a Hugging Face folder."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from splitjax.core.factor import materialize
from splitjax.core.keys import fold
from splitjax.core.stage import Stage, output_spec
from splitjax.core.tree import Tree, path_name, spec_of
from splitjax.models.bert_config import BertConfig
from splitjax.models.folder import read_config, read_tensors
from splitjax.models.name_table import entries

MODEL = ("embeddings.", "encoder.", "pooler.")  # the rest belongs to heads


def load(folder: str | pathlib.Path, config: BertConfig | None = None) -> Tree:
    """The parameters of the dense model in a folder, by stage name, without a head.

    Args:
      folder: has config.json and model.safetensors (or its shards and their index).
      config: the folder's by default. With fewer `layers` the first ones are read.

    Returns:
      Float32 parameters of "embed" and of each layer's "attention" and "ffn"; of
      "pool" too, when the folder has a pooler. Hand them to `start`.

    Raises:
      FileNotFoundError: when a file is missing.
      ValueError: when a tensor of the model is missing, of another shape, or no part
        of it. Tensors of other heads are passed over with a line in the log.

    Example:
      >>> load("/nowhere")
      Traceback (most recent call last):
      ...
      FileNotFoundError: /nowhere is no folder; ...
    """
    whole = read_config(folder)
    config = config or whole
    tensors = read_tensors(folder)
    known = {entry.tensor for entry in entries(whole)}
    strange = [name for name in tensors if name.startswith(MODEL) and name not in known]
    found = [e for e in entries(config) if e.stage != "pool" or e.tensor in tensors]
    missing = sorted({e.tensor for e in found if e.tensor not in tensors})
    if missing or strange:
        raise ValueError(
            f"{folder} does not fit its config: missing tensors {missing or 'none'}, "
            f"unexpected tensors {strange or 'none'}"
        )
    if other := [name for name in tensors if not name.startswith(MODEL)]:
        logging.info("%s: passed over %s", folder, ", ".join(other))
    params: dict[str, Any] = {}
    for entry in found:
        array = tensors[entry.tensor]
        node = params.setdefault(entry.stage, {})
        for part in entry.path[:-1]:
            node = node.setdefault(part, {})
        node[entry.path[-1]] = jnp.asarray(
            array.T if entry.turned else array, jnp.float32
        )
    return params


def start(
    stages: Sequence[Stage],
    pretrained: Tree,
    *,
    key: jax.Array,
    spec: Tree,
    statistics: Tree | None = None,
) -> tuple[Tree, Tree]:
    """Parameters and state of a model: pretrained where there are such, else fresh.

    Args:
      stages: the model's.
      pretrained: parameters by stage name, as `load` or a fit gives them.
      key: folded by stage name for the fresh ones, as `join` does.
      spec: shapes and dtypes of the model's input.
      statistics: pretrained state by stage name, where the model has norms with such.

    Returns:
      Dicts by stage name.

    Raises:
      ValueError: when the leaves of a stage differ from the pretrained ones, or when a
        squeezed layer has no fitted parameters.

    Example:
      >>> from splitjax.models.bert import bert
      >>> stages = bert(BertConfig(vocab=9, width=4, heads=2, layers=1, ffn=8))
      >>> spec = {"ids": jax.ShapeDtypeStruct((1, 3), jnp.int32),
      ...     "mask": jax.ShapeDtypeStruct((1, 3), jnp.bool_)}
      >>> params, state = start(stages, {}, key=jax.random.key(0), spec=spec)
      >>> sorted(params)
      ['embed', 'layer_0/attention', 'layer_0/ffn']
    """
    params, state = {}, {}
    for stage in stages:
        want, rest = jax.eval_shape(stage.init, key, spec)
        given = pretrained.get(stage.name)
        if stage.tags & {"squeeze", "expand"} and pretrained and given is None:
            raise ValueError(
                f"no parameters for stage {stage.name!r}: fit them to the dense ones "
                "with factors.low_rank.squeeze_params, and pass them in `pretrained`"
            )
        known = (statistics or {}).get(stage.name)
        fresh = given is None or not jax.tree.leaves(want)
        made = {}, {}
        if fresh or (jax.tree.leaves(rest) and known is None):
            made = stage.init(fold(key, stage.name), spec)
        made = made[0] if fresh else given, made[1] if known is None else known
        params[stage.name], state[stage.name] = made
        _check(stage.name, want, params[stage.name])
        _check(stage.name, rest, state[stage.name])
        spec = output_spec(stage, *made, spec)
    return params, state


def _check(name: str, want: Tree, given: Tree) -> None:
    def named(tree):
        dense = jax.eval_shape(materialize, tree)
        leaves = jax.tree_util.tree_leaves_with_path(spec_of(dense))
        return {path_name(path): (leaf.shape, str(leaf.dtype)) for path, leaf in leaves}

    want, given = named(want), named(given)
    differ = [
        f"{path}: {given.get(path, 'absent')}, expected {want.get(path, 'nothing')}"
        for path in sorted(want | given)
        if want.get(path) != given.get(path)
    ]
    if differ:
        raise ValueError(
            f"the pretrained parameters of stage {name!r} do not fit:\n  "
            + "\n  ".join(differ)
        )
