"""Compressing a trained model: what it costs and what it scores, before and after."""

import dataclasses
import json
import logging
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from splitjax.core.factor import factorize, is_factor, materialize
from splitjax.core.message import tree_bytes
from splitjax.core.tree import Tree, spec_of, where
from splitjax.data.batches import model_inputs
from splitjax.factors.fisher import fisher
from splitjax.metrics.flops import flops
from splitjax.train.compress_options import METHODS, TUNES, Compress
from splitjax.train.loop import Run, evaluate, open_trained, train
from splitjax.train.report import markdown, versions

Row = dict[str, Any]


def params_of(run: Run) -> Tree:
    """The parameters of an un-split run, by stage name."""
    return run.state.edge["params"]["0"]


def with_params(run: Run, params: Tree) -> Run:
    """The same run with other parameters."""
    edge = {**run.state.edge, "params": {"0": params}}
    return dataclasses.replace(run, state=run.state._replace(edge=edge))


def score(run: Run, params: Tree, splits: Sequence[str] = ()) -> dict[str, float]:
    """The scores of a run's model with other parameters, by data split.

    Factors are made dense for it, so that every size runs the programs of the first:
    the function is the same but for rounding, and its speed is not measured here.
    """
    names = splits or tuple(run.parts.evals)
    evals = {name: run.parts.evals[name] for name in names}
    parts = dataclasses.replace(run.parts, evals=evals)
    other = with_params(run, materialize(params))
    return evaluate(dataclasses.replace(other, parts=parts))


def examples_of(batch: dict) -> tuple[Tree, np.ndarray]:
    """A batch as examples, each a batch of one, and which of them are real.

    Two towers have their rows apart, example i in rows i and B + i: it has both.

    Example:
      >>> ids = np.array([[1], [2], [3], [4]])
      >>> batch = {"ids": ids, "y": np.zeros(2), "n_valid": 1}
      >>> made, valid = examples_of(batch)
      >>> made["x"]["ids"][:, :, 0].tolist(), made["target"]["y"].shape, valid.tolist()
      ([[1, 3], [2, 4]], (2, 1), [True, False])
    """
    count = len(batch["y"])

    def apart(leaf):
        leaf = np.asarray(leaf)
        return np.swapaxes(leaf.reshape(-1, count, *leaf.shape[1:]), 0, 1)

    target = {"y": np.asarray(batch["y"])[:, None], "n_valid": np.ones(count, np.int32)}
    made = {"x": jax.tree.map(apart, model_inputs(batch)), "target": target}
    return made, np.arange(count) < batch["n_valid"]


def measured(experiment: Compress, run: Run) -> Tree:
    """The Fisher of the chosen matrices on training examples, without dropout."""
    split = run.parts.split
    state = run.state.edge["state/0"]

    def loss(params, example):
        y, _, _ = split.cut.model.apply(
            params, state, example["x"], key=None, train=False
        )
        return split.loss(y, example["target"])[0]

    def batches() -> Iterator[tuple[Tree, np.ndarray]]:
        left = experiment.fisher_examples
        for [batch] in run.parts.train.epoch(0):
            made, valid = examples_of(batch)
            valid &= np.cumsum(valid) <= left
            left -= int(valid.sum())
            yield made, valid
            if left <= 0:
                return

    return fisher(
        loss,
        params_of(run),
        batches(),
        where=where(experiment.where),
        chunk=experiment.fisher_chunk,
    )


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


def costs(run: Run, params: Tree, x: Tree) -> dict[str, Any]:
    """Numbers, bytes, and operations of a forward pass of one example of x's length."""
    model, state = run.parts.split.cut.model, run.state.edge["state/0"]

    def forward(params, state, x):
        return model.apply(params, state, x, key=None, train=False)[0]

    total = flops(forward, spec_of(params), spec_of(state), x["spec"])
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "bytes": tree_bytes(params),
        "flops": total / x["examples"],
    }


def compress(
    experiment: Compress,
    seed: int,
    workdir: str | pathlib.Path,
    *,
    progress: bool = True,
) -> list[Row]:
    """Trains a model where there is none yet, and compresses it each way.

    Args:
      experiment: what to do.
      seed: see `loop.train`.
      workdir: gets `dense/` and the runs of `tune`, which go on where they were, and
        `compress.json` after each point.
      progress: see `loop.train`.

    Returns:
      A row for the dense model and for each point: `parameters`, `bytes`, `flops` (of
      one example), `error` and `weighted_error` (see `errors`), `before` (the dense
      model's score), `value` (this one's), `tuned` (after `tune`, or None), `scores`.

    Raises:
      ValueError: for options that make no sense, or as `factorize` does.
    """
    experiment.validate()
    folder = pathlib.Path(workdir)
    dense = experiment.dense()
    trained = pathlib.Path(experiment.trained or folder / "dense")
    if not experiment.trained:
        train(dense, seed, trained, progress=progress)
    elif not (trained / "summary.json").exists():
        raise ValueError(
            f"trained={experiment.trained!r} holds no finished run: it has no "
            "summary.json; leave it empty to train one here"
        )
    run = open_trained(dense, seed, trained)
    params = params_of(run)
    first, *_ = next(iter(run.parts.train.epoch(0)))
    x = {"spec": spec_of(model_inputs(first)), "examples": len(first["y"])}
    before = score(run, params, experiment.score_on)
    name = next(iter(before))
    unit = f"{name} {run.parts.score_name}"
    top = {"name": "dense", "factor": "", "share": 1.0, **costs(run, params, x)}
    top |= {"error": 0.0, "weighted_error": 0.0, "before": before[name]}
    top |= {"value": before[name], "tuned": None, "scores": before, "unit": unit}
    made: list[Row] = [{**top, "seed": seed, "fit_seconds": 0.0, **versions()}]
    weights = None
    if any(METHODS[factor].weighted for factor in experiment.factors):
        began = time.monotonic()
        weights = measured(experiment, run)
        logging.info("the Fisher took %.0f s", time.monotonic() - began)
    for share in experiment.shares:
        for factor in experiment.factors:
            began = time.monotonic()
            new = fitted(experiment, params, weights, factor, share)
            seconds = time.monotonic() - began
            scores = score(run, new, experiment.score_on)
            row = {"name": f"{factor} {share:.0%}", "factor": factor, "share": share}
            row |= costs(run, new, x)
            plain, weighted = errors(params, new, weights)
            row |= {"error": plain, "weighted_error": weighted}
            row |= {"before": before[name], "value": scores[name], "scores": scores}
            row |= {"tuned": None, "unit": unit, "seed": seed, "fit_seconds": seconds}
            if experiment.tune:
                row["tuned"] = tuned(experiment, seed, folder, row, new)[name]
            logging.info("%s: %s", row["name"], scores)
            made.append(row)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "compress.json").write_text(json.dumps(made, indent=2) + "\n")
    run.driver.close()
    return made


def fitted(
    experiment: Compress, params: Tree, weights: Tree | None, factor: str, share: float
) -> Tree:
    """The parameters with the chosen matrices compressed."""
    method = METHODS[factor]
    fit = method.fit(experiment, share)
    choose = where(experiment.where)
    if not method.weighted:
        return factorize(lambda kernel: fit(kernel, None), params, choose)
    return factorize(fit, params, choose, weights)


def tuned(
    experiment: Compress, seed: int, folder: pathlib.Path, row: Row, params: Tree
) -> dict[str, float]:
    """The scores of compressed parameters that were trained on."""
    tune, share = TUNES[experiment.tune], row["share"]
    one = experiment.tuned(row["factor"], share, params)
    place = folder / f"{experiment.tune}_{row['factor']}_{share}"
    train(one, seed, place)
    run = open_trained(one, seed, place)

    new = tune.end(
        params_of(run), lambda params: fitted(experiment, params, None, "svd", share)
    )
    scores = score(run, new, experiment.score_on)
    run.driver.close()
    return scores


def table(made: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    head = ("point", "parameters", "MB", "MFLOPs", "error", "weighted", "before")
    head += ("after", "tuned", "fit s")
    cells = [
        (
            r["name"],
            f"{r['parameters'] / 1e6:.3f}M",
            f"{r['bytes'] / 1e6:.2f}",
            f"{r['flops'] / 1e6:.1f}",
            f"{r['error']:.4f}",
            "-" if r["weighted_error"] is None else f"{r['weighted_error']:.4f}",
            f"{r['before']:.4f}",
            f"{r['value']:.4f}",
            "-" if r["tuned"] is None else f"{r['tuned']:.4f}",
            f"{r['fit_seconds']:.0f}",
        )
        for r in made
    ]
    return f"{made[0]['unit']}\n\n{markdown(head, cells)}"


def plot(made: Sequence[Row], path: pathlib.Path, title: str = "") -> None:
    """Draws score against bytes, a line for each factor, to a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(made[0]["value"], color="gray", ls="--", label="dense")
    for factor in dict.fromkeys(r["factor"] for r in made[1:]):
        points = sorted(
            (r["bytes"] / 1e6, r["value"], r["tuned"])
            for r in made
            if r["factor"] == factor
        )
        size, after, later = zip(*points, strict=True)
        [line] = axes.plot(size, after, "o-", label=factor)
        if all(value is not None for value in later):
            axes.plot(
                size, later, "s:", color=line.get_color(), label=f"{factor}, tuned"
            )
    axes.set(xlabel="MB of parameters", ylabel=made[0]["unit"], title=title)
    axes.legend()
    figure.savefig(path, dpi=120)
