"""Pretrained weights: parameters by stage name from a Hugging Face folder."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from splitjax.core.factor import materialize
from splitjax.core.keys import fold
from splitjax.core.stage import Stage, output_spec, ties
from splitjax.core.tree import Tree, path_name, spec_of
from splitjax.models.families import family_of
from splitjax.models.folder import read_config as read_config
from splitjax.models.folder import read_fields, read_tensors
from splitjax.models.name_table import leaves_of


def load(folder: str | pathlib.Path, config: Any = None) -> Tree:
    """The parameters of the dense model in a folder, by stage name.

    Args:
      folder: has config.json and model.safetensors (or its shards and their index), of
        a model in `families.FAMILIES`.
      config: the folder's by default. With fewer `layers` the first ones are read.

    Returns:
      Float32 parameters by stage name; of BERT without its heads, but with "pool" when
      the folder has a pooler. Hand them to `start`.

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
    fields = read_fields(folder)
    family = family_of(fields.get("model_type", ""))
    whole = family.from_json(fields)
    config = whole if config is None else config
    tensors = read_tensors(folder)
    known = {name for e in family.entries(whole) for name in (e.tensor, e.instead)}
    strange = [n for n in tensors if n.startswith(family.own) and n not in known]
    if strange:
        raise ValueError(
            f"{folder} does not fit its config: unexpected tensors {strange}"
        )
    if getattr(config, "tied", False):
        _check_tied(folder, tensors, family.entries(config)[0].tensor)
    if other := [name for name in tensors if name not in known]:
        logging.info("%s: passed over %s", folder, ", ".join(other))
    table = [
        entry
        for entry in family.entries(config)
        if entry.stage not in family.optional or entry.tensor in tensors
    ]
    try:
        return leaves_of(table, tensors)
    except ValueError as error:
        raise ValueError(f"{folder} does not fit its config: {error}") from None


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
      >>> import jax.numpy as jnp
      >>> from splitjax.models.bert import bert
      >>> from splitjax.models.bert_config import BertConfig
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
        spec = output_spec(stage, *made, spec, **ties(stage, params))
    return params, state


def _check_tied(folder: str | pathlib.Path, tensors: dict, table: str) -> None:
    head = tensors.get("lm_head.weight")
    if head is not None and not np.array_equal(head, tensors.get(table, head)):
        raise ValueError(
            f"{folder} has a head that differs from its embeddings, though its config "
            "ties them: load it with a config of `tied=False`"
        )


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
