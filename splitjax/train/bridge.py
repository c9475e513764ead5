"""How the code at a narrow cut is made: once, in the cloud, from public text."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from splitjax import data
from splitjax.core.codec import Link
from splitjax.core.stage import Stage, join
from splitjax.core.tree import Tree, nearest, path_name, spec_of
from splitjax.data.archive import cache
from splitjax.data.batches import model_inputs
from splitjax.factors.low_rank import squeeze_params
from splitjax.factors.principal import principal
from splitjax.models import pretrained
from splitjax.models.squeeze import Squeeze
from splitjax.train.distill import distill

BATCH_SIZE, MAX_LENGTH = 64, 64
ROWS = 50_000  # tokens that principal directions are taken from


def public_batches(
    names: Sequence[str], tokenizer: Any, *, pairs: bool, types: bool
) -> Iterator[Tree]:
    """Inputs of a model from the training texts of some data sets, without end.

    Args:
      names: data sets as `splitjax.data.load` knows them.
      tokenizer: the model's.
      pairs: whether the model reads two texts in one sequence. Then data sets without
        second texts pair each text with the next one.
      types: whether the model reads token types.
    """
    first: list[str] = []
    second: list[str] = []
    for name in names:
        table = data.load(name, "train")
        one, other = table.text_a, table.text_b
        if pairs:
            first += one
            second += other or one[1:] + one[:1]
        else:
            first += list(dict.fromkeys([*one, *(other or [])]))
    labels = np.zeros(len(first), np.float32)
    table = data.Table("public", "train", first, second if pairs else None, labels, 0)
    encoded = tokenizer.encode(table, max_length=MAX_LENGTH)
    if not types:
        encoded = dataclasses.replace(encoded, types=None)
    batches = data.Batches(encoded, BATCH_SIZE, group_by_length=True)
    epoch = 0
    while True:
        for [batch] in batches.epoch(epoch):
            yield model_inputs(batch)
        epoch += 1


def squeezed_params(
    given: Tree,
    teacher: Sequence[Stage],
    student: Sequence[Stage],
    *,
    layer: int,
    squeeze: Squeeze,
    inputs: Iterator[Tree],
    link: Link,
    steps: int,
    learning_rate: float,
    about: dict[str, Any],
) -> Tree:
    """Pretrained parameters of a model with a narrow cut: fitted, then distilled.

    Args:
      given: those of the whole model, by stage name.
      teacher: its stages, without a head.
      student: those of the cut one.
      layer: see `fit_squeeze`.
      squeeze: see `fit_squeeze`.
      inputs: public texts, read where the weights alone do not decide.
      link: of the cut.
      steps: of distillation; 0 for none.
      learning_rate: see `distill`.
      about: see `distilled`.
    """
    kwargs: dict[str, Any] = dict(layer=layer, squeeze=squeeze, inputs=inputs)
    if not steps and squeeze.mode == "svd" and not isinstance(squeeze.skip, int):
        return fit_squeeze(teacher, given, {}, {}, **kwargs)
    x = next(inputs)
    whole = pretrained.start(teacher, given, key=jax.random.key(0), spec=spec_of(x))
    fitted = fit_squeeze(teacher, given, *whole, **kwargs)
    if not steps:
        return fitted
    return distilled(
        teacher,
        student,
        given,
        fitted,
        link=link,
        inputs=inputs,
        steps=steps,
        learning_rate=learning_rate,
        about={**about, "inputs": sorted(x)},
    )


def fit_squeeze(
    stages: Sequence[Stage],
    given: Tree,
    params: Tree,
    state: Tree,
    *,
    layer: int,
    squeeze: Squeeze,
    inputs: Iterator[Tree],
) -> Tree:
    """Pretrained parameters in which one feed-forward block is parted for the cut.

    Args:
      stages: of the whole model, without the cut.
      given: its pretrained parameters by stage name.
      params: all its parameters.
      state: its state.
      layer: the layer to part.
      squeeze: how.
      inputs: texts, where principal directions are needed.
    """
    block = f"layer_{layer}/ffn"
    if block not in given:
        known = [stage.name for stage in stages]
        raise ValueError(f"no stage {block!r} to squeeze: {nearest(block, known)}")
    width = squeeze.rank if squeeze.mode == "pca" else squeeze.skip
    mean = basis = None
    if isinstance(width, int):
        rows = activations(stages, params, state, block, inputs, ROWS)
        mean, basis, kept = principal(rows, width)
        logging.info("%d principal directions keep %.1f %%", width, 100 * kept)
    edge, cloud = squeeze_params(
        given[block],
        squeeze.rank,
        skip=squeeze.skip,
        mode=squeeze.mode,
        mean=mean,
        basis=basis,
    )
    fitted = {name: leaves for name, leaves in given.items() if name != block}
    fitted[f"layer_{layer}/squeeze"] = edge
    fitted[f"layer_{layer}/expand"] = cloud
    return fitted


def activations(
    stages: Sequence[Stage],
    params: Tree,
    state: Tree,
    before: str,
    inputs: Iterator[Tree],
    count: int,
) -> np.ndarray:
    """At least `count` rows (N, D) that enter a stage, of real tokens."""
    names = [stage.name for stage in stages]
    front = join(stages[: names.index(before)])
    own = [
        {stage.name: tree[stage.name] for stage in front.stages}
        for tree in (params, state)
    ]
    run = jax.jit(lambda own, x: front.apply(*own, x, key=None, train=False)[0]["h"])
    rows: list[np.ndarray] = []
    while sum(map(len, rows)) < count:
        x = next(inputs)
        rows.append(np.asarray(run(own, x), np.float32)[x["mask"]])
    return np.concatenate(rows)


def distilled(
    teacher: Sequence[Stage],
    student: Sequence[Stage],
    given: Tree,
    fitted: Tree,
    *,
    link: Link,
    inputs: Iterator[Tree],
    steps: int,
    learning_rate: float,
    about: dict[str, Any],
) -> Tree:
    """`fitted` after distillation; kept in the cache, for all the runs of a sweep.

    Args:
      teacher: stages of the whole model, without a head.
      student: those of the cut one.
      given: the teacher's pretrained parameters.
      fitted: the student's.
      link: of the cut.
      inputs: texts.
      steps: see `distill`.
      learning_rate: see `distill`.
      about: what else decides the result, as JSON types; the cache's key.
    """
    from safetensors.numpy import load_file, save_file

    about = {**about, "steps": steps, "learning_rate": learning_rate}
    about["error"] = "tokens and means"
    about |= {"forward": link.forward.name, "weights": digest(fitted)}
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:20]
    path = cache() / "bridges" / f"{name}.safetensors"
    names = {stage.name for stage in student}
    if not path.exists():
        x = next(inputs)
        key = jax.random.key(0)
        params, state = pretrained.start(teacher, given, key=key, spec=spec_of(x))
        more = pretrained.start(student, fitted, key=key, spec=spec_of(x))
        learned, losses = distill(
            teacher,
            student,
            {**params, **more[0]},
            {**state, **more[1]},
            link=link,
            batches=inputs,
            steps=steps,
            learning_rate=learning_rate,
        )
        logging.info(
            "distilled: error %.4f at first, %.4f at last", losses[0], losses[-1]
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({k: np.asarray(v) for k, v in flat(learned).items()}, part)
        part.rename(path)
    learned = load_file(path)
    full = {name: leaves for name, leaves in fitted.items() if name in names}
    rest = {name: leaves for name, leaves in fitted.items() if name not in names}

    def one(way, leaf):
        return jnp.asarray(learned.get(path_name(way), leaf))

    return {**rest, **jax.tree_util.tree_map_with_path(one, full)}


def flat(tree: Tree) -> dict[str, Any]:
    """Leaves by their path.

    Example:
      >>> flat({"wi": {"kernel": 1}})
      {'wi/kernel': 1}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def digest(tree: Tree) -> str:
    """A hash of all leaves of a tree and their names.

    Example:
      >>> digest({"a": np.ones(2)}) == digest({"b": np.ones(2)})
      False
    """
    made = hashlib.sha256()
    for name, leaf in sorted(flat(tree).items()):
        made.update(name.encode() + np.asarray(leaf).tobytes())
    return made.hexdigest()
