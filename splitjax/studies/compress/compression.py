"""A model at several sizes, by several methods: cost, error and score of each."""

import dataclasses
import itertools
import json
import logging
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from splitjax.core.factor import is_factor, materialize
from splitjax.core.stage import Segment
from splitjax.core.tree import Tree, spec_of
from splitjax.factors.smartdeal_pack import stored_bytes, stored_numbers
from splitjax.metrics.flops import flops
from splitjax.studies.compress.methods import METHODS, coded, fitted
from splitjax.train.experiment import check, option
from splitjax.train.report import versions

Row = dict[str, Any]
SOLVERS = ("als", "em", "adam_sgd")


@dataclasses.dataclass
class Compression:
    """Options of a compression, whatever the model is."""

    factors: tuple[str, ...] = option(
        ("svd", "fwsvd", "wsvd"), f"by what: some of {tuple(METHODS)}"
    )
    shares: tuple[float, ...] = option(
        (0.7, 0.5, 0.3),
        "parts of the matrices' numbers that are kept; of 'quantized' of their bytes",
    )
    where: str = option(r"layer_\d+/.*/kernel", "which matrices, by their path")
    solver: str = option("als", f"of wsvd: one of {SOLVERS}")
    iterations: int = option(4, "of the solver")
    fisher_chunk: int = option(4, "examples whose gradients are held at once")
    codes: float = option(
        0.0, "SmartDeal on top, at the end: the part of its codes that is kept; 0: none"
    )

    def check_points(self, *counts: str) -> None:
        """Raises a ValueError for options of these that make no sense.

        Args:
          *counts: further options that must be 1 or more.
        """
        check(self.solver, "solver", SOLVERS)
        for name in self.factors:
            check(name, "factors", tuple(METHODS))
        if not self.factors or not self.shares:
            raise ValueError("factors and shares name one thing each at least")
        for share in self.shares:
            if not 0 < share <= 1:
                raise ValueError(f"shares has {share}: each is from 0 to 1")
        for name in ("fisher_chunk", "iterations", *counts):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be 1 or more")
        if not 0 <= self.codes <= 1:
            raise ValueError(f"codes={self.codes}: a share from 0 to 1")
        done = [name for name in self.factors if METHODS[name].form == "codes"]
        if self.codes and done:
            raise ValueError(
                f"codes={self.codes} after factors={done}: what they make is coded "
                "already; leave one of the two out"
            )


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model that is compressed, and how it is judged.

    Attributes:
      params: of the dense model, by stage name.
      score: `(dense params) -> scores`.
      costs: `(params) -> Row`, see `costs`.
      fisher: `() -> weights`, of the structure of params.
      name: of the score that a row has as its value.
      unit: what that is, in words.
    """

    params: Tree
    score: Callable[[Tree], dict[str, float]]
    costs: Callable[[Tree], Row]
    fisher: Callable[[], Tree]
    name: str
    unit: str


def compressed(
    experiment: Compression,
    subject: Subject,
    folder: pathlib.Path,
    *,
    facts: Row,
    weighted: bool = False,
    tune: Callable[[Row, Tree, Tree | None], Tree] | None = None,
) -> list[Row]:
    """Scores a model, and compresses it each way and to each size.

    Factors are made dense for a score, so that every size runs the programs of the
    first: the function is the same but for rounding, and its speed is not measured.

    Args:
      experiment: the options.
      subject: what is compressed.
      folder: gets `compress.json` after each point.
      facts: what every row says, too.
      weighted: whether `tune` reads the Fisher.
      tune: `(row, params, weights) -> params` trains a point on; None: nothing does.

    Returns:
      A row for the dense model and for each point: `parameters`, `bytes`, `flops` (see
      `costs`), `error` and `weighted_error` (see `errors`), `before` (the dense model's
      score), `value` (this one's), `tuned` (after `tune`, or None), `coded` and
      `coded_bytes` (with SmartDeal on top of that, or None), `scores`.
    """
    before = subject.score(materialize(subject.params))
    logging.info("dense: %s", before)
    same = {"before": before[subject.name], "unit": subject.unit, **facts}
    same |= {"tuned": None, "coded": None, "coded_bytes": None}
    first: Row = {"name": "dense", "factor": "", "share": 1.0, "fit_seconds": 0.0}
    first |= {"error": 0.0, "weighted_error": 0.0, **subject.costs(subject.params)}
    first |= {"value": before[subject.name], "scores": before, **same, **versions()}
    made, weights = [first], None
    if weighted or any(METHODS[factor].weighted for factor in experiment.factors):
        began = time.monotonic()
        weights = jax.block_until_ready(subject.fisher())
        logging.info("the Fisher took %.0f s", time.monotonic() - began)
    folder.mkdir(parents=True, exist_ok=True)
    for share, factor in itertools.product(experiment.shares, experiment.factors):
        row, new = _point(experiment, subject, weights, factor, share)
        row |= same
        if tune is not None:
            new = tune(row, new, weights)
            row["tuned"] = subject.score(materialize(new))[subject.name]
        if experiment.codes:
            new = coded(experiment, new, experiment.codes)
            row["coded"] = subject.score(materialize(new))[subject.name]
            row["coded_bytes"] = stored_bytes(new)
        logging.info("%s: %s, coded %s", row["name"], row["scores"], row["coded"])
        made.append(row)
        (folder / "compress.json").write_text(json.dumps(made, indent=2) + "\n")
    return made


def _point(
    experiment: Compression,
    subject: Subject,
    weights: Tree | None,
    factor: str,
    share: float,
) -> tuple[Row, Tree]:
    """A row and the parameters that it tells of."""
    began = time.monotonic()
    new = fitted(experiment, subject.params, weights, factor, share)
    jax.block_until_ready(new)
    row: Row = {"name": f"{factor} {share:.0%}", "factor": factor, "share": share}
    row["fit_seconds"] = time.monotonic() - began
    plain, uneven = errors(subject.params, new, weights)
    row |= {"error": plain, "weighted_error": uneven, **subject.costs(new)}
    scores = subject.score(materialize(new))
    return {**row, "value": scores[subject.name], "scores": scores}, new


def errors(
    dense: Tree, params: Tree, weights: Tree | None
) -> tuple[float, float | None]:
    """The relative error of the factored leaves, and the same under the weights.

    Each is sqrt(sum F (W - W')^2 / sum F W^2) over all of them; None without weights.
    """
    leaves, treedef = jax.tree.flatten(dense)
    new = treedef.flatten_up_to(params)
    each = [None] * len(leaves) if weights is None else treedef.flatten_up_to(weights)
    sums = np.zeros(4)
    for w, other, f in zip(leaves, new, each, strict=True):
        if not is_factor(other):
            continue
        w = np.asarray(w, np.float64)
        apart = np.square(w - np.asarray(other.materialize(), np.float64))
        f = np.zeros(()) if f is None else np.asarray(f, np.float64)
        sums += apart.sum(), np.square(w).sum(), (f * apart).sum(), (f * w * w).sum()
    parts = np.sqrt(sums[::2] / np.where(sums[1::2] == 0, 1, sums[1::2]))
    return float(parts[0]), None if weights is None else float(parts[1])


def costs(model: Segment, params: Tree, state: Tree, x: Tree, count: int) -> Row:
    """Numbers, bytes as they are stored, and operations of a forward pass.

    SmartDeal's codes count as `smartdeal_pack` has them: packed bytes, and numbers that
    are not zero; its operations those of the program here, which rebuilds a kernel. One
    that is quantized has the numbers of the dense one and its scales, and the bytes of
    codes and scales.

    Args:
      model: all of it.
      params: by stage name.
      state: by stage name.
      x: the spec of an input.
      count: in how many parts the operations are told: examples or tokens of x.
    """

    def forward(params, state, x):
        return model.apply(params, state, x, key=None, train=False)[0]

    return {
        "parameters": stored_numbers(params),
        "bytes": stored_bytes(params),
        "flops": flops(forward, spec_of(params), spec_of(state), x) / count,
    }
