"""Compressing a trained model: what it costs and what it scores, before and after."""

import contextlib
import dataclasses
import pathlib

from splitjax.core.factor import materialize
from splitjax.core.tree import Tree, spec_of, where
from splitjax.data.batches import model_inputs
from splitjax.data.examples import first_examples
from splitjax.factors.fisher import fisher
from splitjax.studies.compress.compression import Row, Subject, compressed, costs
from splitjax.studies.compress.methods import fitted
from splitjax.studies.compress.options import Compress
from splitjax.studies.compress.tuning import TUNES, Tuning
from splitjax.train.loop import train
from splitjax.train.runs import Run, evaluate, open_trained


def params_of(run: Run) -> Tree:
    """The parameters of an un-split run, by stage name."""
    return run.state.edge["params"]["0"]


def with_params(run: Run, params: Tree) -> Run:
    """The same run with other parameters."""
    edge = {**run.state.edge, "params": {"0": params}}
    return dataclasses.replace(run, state=run.state._replace(edge=edge))


def score(run: Run, params: Tree) -> dict[str, float]:
    """The scores of a run's model with other parameters, by data split."""
    return evaluate(with_params(run, materialize(params)))


def measured(experiment: Compress, run: Run) -> Tree:
    """The Fisher of the chosen matrices on training examples, without dropout."""
    split = run.parts.split
    state = run.state.edge["state/0"]

    def loss(params, example):
        y, _, _ = split.cut.model.apply(
            params, state, example["x"], key=None, train=False
        )
        return split.loss(y, example["target"])[0]

    return fisher(
        loss,
        params_of(run),
        first_examples(run.parts.train.epoch(0), experiment.fisher_examples),
        where=where(experiment.where),
        chunk=experiment.fisher_chunk,
    )


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
      Rows as `compression.compressed` has them, `flops` of one example.

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
    with contextlib.closing(run.driver):
        first, *_ = next(iter(run.parts.train.epoch(0)))
        model, state = run.parts.split.cut.model, run.state.edge["state/0"]
        x, count = spec_of(model_inputs(first)), len(first["y"])
        name = next(iter(run.parts.evals))
        subject = Subject(
            params_of(run),
            score=lambda params: score(run, params),
            costs=lambda params: costs(model, params, state, x, count),
            fisher=lambda: measured(experiment, run),
            name=name,
            unit=f"{name} {run.parts.score_name}",
        )
        return tuned_too(experiment, subject, seed, folder, facts={"seed": seed})


def tuned_too(
    experiment: Tuning,
    subject: Subject,
    seed: int,
    folder: pathlib.Path,
    *,
    facts: Row,
) -> list[Row]:
    """As `compression.compressed`; each point is trained on, if `tune` says so.

    Args:
      experiment: the options.
      subject: what is compressed.
      seed: of the runs that train on.
      folder: gets them, too.
      facts: what every row says, too.
    """

    def tune(row, params, weights):
        return tuned(experiment, seed, folder, row, params, weights)

    return compressed(
        experiment,
        subject,
        folder,
        facts=facts,
        weighted=bool(experiment.tune) and TUNES[experiment.tune].weighted,
        tune=tune if experiment.tune else None,
    )


def tuned(
    experiment: Tuning,
    seed: int,
    folder: pathlib.Path,
    row: Row,
    params: Tree,
    weights: Tree | None,
) -> Tree:
    """Compressed parameters that were trained on, compressed again."""
    tune, share = TUNES[experiment.tune], row["share"]
    one = experiment.tuned(row["factor"], share, params, weights)
    place = folder / f"{experiment.tune}_{row['factor']}_{share}"
    train(one, seed, place)
    run = open_trained(one, seed, place)
    run.driver.close()
    return tune.end(
        params_of(run), lambda params: fitted(experiment, params, None, "svd", share)
    )
