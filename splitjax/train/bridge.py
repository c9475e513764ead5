"""How the code at a narrow cut is made: once, in the cloud, from public text."""

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.codec import Link
from splitjax.core.stage import Stage, join
from splitjax.core.tree import Tree, flat, nearest, path_name, spec_of
from splitjax.factors.low_rank import squeeze_params
from splitjax.factors.principal import principal
from splitjax.models import pretrained
from splitjax.models.squeeze import Squeeze
from splitjax.train import shelf
from splitjax.train.distill import distill

ROWS = 50_000  # tokens that principal directions are taken from


def squeezed_params(
    given: Tree,
    teacher: Sequence[Stage],
    student: Sequence[Stage],
    *,
    layer: int,
    squeeze: Squeeze,
    inputs: Callable[[], Iterator[Tree]],
    link: Link,
    steps: int,
    learning_rate: float,
    about: dict[str, Any],
) -> Tree:
    """Pretrained parameters of a model with a narrow cut: fitted, then distilled.

    What was made of the same texts before is read from the cache, and no text is.

    Args:
      given: those of the whole model, by stage name.
      teacher: its stages, without a head.
      student: those of the cut one.
      layer: see `fit_squeeze`.
      squeeze: see `fit_squeeze`.
      inputs: gives public texts, read where the weights alone do not decide.
      link: of the cut.
      steps: of distillation; 0 for none.
      learning_rate: see `distill`.
      about: what else decides the texts, as JSON types: their names in "texts".
    """
    width = squeeze.rank if squeeze.mode == "pca" else squeeze.skip
    found: dict[str, Any] = {}
    if isinstance(width, int):
        before = f"layer_{layer}/ffn"
        found = directions(teacher, given, before, width, inputs, about)
    fitted = fit_squeeze(
        teacher,
        given,
        layer=layer,
        squeeze=squeeze,
        mean=found.get("mean"),
        basis=found.get("basis"),
    )
    if not steps:
        return fitted
    # The texts go on where the directions left them.
    start = int(np.ravel(found.get("batches", 1))[0])
    return distilled(
        teacher,
        student,
        given,
        fitted,
        link=link,
        inputs=lambda: itertools.islice(inputs(), start, None),
        steps=steps,
        learning_rate=learning_rate,
        about=about,
    )


def directions(
    stages: Sequence[Stage],
    given: Tree,
    before: str,
    width: int,
    inputs: Callable[[], Iterator[Tree]],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Principal directions of what enters a stage; kept in the cache.

    Returns:
      `mean` (D,) and `basis` (D, width), float64; `batches`, how many were read.
    """
    known = [stage.name for stage in stages]
    if before not in known:
        raise ValueError(f"no stage {before!r} to squeeze: {nearest(before, known)}")
    front = known[: known.index(before)]

    def make():
        batches = inputs()
        x = next(batches)
        whole = pretrained.start(stages, given, key=jax.random.key(0), spec=spec_of(x))
        rows, count = activations(stages, *whole, before, batches, ROWS)
        mean, basis, share = principal(rows, width)
        logging.info("%d principal directions keep %.1f %%", width, 100 * share)
        return {"mean": mean, "basis": basis, "batches": np.int64(count + 1)}

    weights = digest({name: given[name] for name in front})
    return shelf.kept(
        {
            **about,
            "content": shelf.content(about["texts"]),
            "principal": [before, width, ROWS],
            "weights": weights,
        },
        make,
    )


def fit_squeeze(
    stages: Sequence[Stage],
    given: Tree,
    *,
    layer: int,
    squeeze: Squeeze,
    mean: np.ndarray | None,
    basis: np.ndarray | None,
) -> Tree:
    """Pretrained parameters in which one feed-forward block is parted for the cut.

    Args:
      stages: of the whole model, without the cut.
      given: its pretrained parameters by stage name.
      layer: the layer to part.
      squeeze: how.
      mean: see `directions`; None where the weights alone decide.
      basis: likewise.
    """
    block = f"layer_{layer}/ffn"
    if block not in given:
        known = [stage.name for stage in stages]
        raise ValueError(f"no stage {block!r} to squeeze: {nearest(block, known)}")
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
) -> tuple[np.ndarray, int]:
    """At least `count` rows (N, D) that enter a stage, and of how many batches."""
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
    return np.concatenate(rows), len(rows)


def distilled(
    teacher: Sequence[Stage],
    student: Sequence[Stage],
    given: Tree,
    fitted: Tree,
    *,
    link: Link,
    inputs: Callable[[], Iterator[Tree]],
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
    names = {stage.name for stage in student}

    def make():
        batches = inputs()
        x = next(batches)
        key = jax.random.key(0)
        params, state = pretrained.start(teacher, given, key=key, spec=spec_of(x))
        more = pretrained.start(student, fitted, key=key, spec=spec_of(x))
        learned, losses = distill(
            teacher,
            student,
            {**params, **more[0]},
            {**state, **more[1]},
            link=link,
            batches=batches,
            steps=steps,
            learning_rate=learning_rate,
        )
        logging.info(
            "distilled: error %.4f at first, %.4f at last", losses[0], losses[-1]
        )
        return flat(learned)

    learned = shelf.kept(
        {
            **about,
            "steps": steps,
            "learning_rate": learning_rate,
            "error": "tokens and means",
            "forward": link.forward.name,
            "weights": digest(fitted),
        },
        make,
    )
    full = {name: leaves for name, leaves in fitted.items() if name in names}
    rest = {name: leaves for name, leaves in fitted.items() if name not in names}

    def one(way, leaf):
        return jnp.asarray(learned.get(path_name(way), leaf))

    return {**rest, **jax.tree_util.tree_map_with_path(one, full)}


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
