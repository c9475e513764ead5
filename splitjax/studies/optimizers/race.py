"""Optimizers that are tuned alike, and what a step of each takes."""

import dataclasses
import functools
import logging
import math
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from splitjax.storage import log
from splitjax.studies.frontier import grid, name_of
from splitjax.train.experiment import Experiment
from splitjax.train.loop import train
from splitjax.train.report import is_lower_better, mean_and_deviation
from splitjax.train.stepper import stepper
from splitjax.train.timing import interleaved

Point = dict[str, Any]


def arms(grids: Sequence[str], experiment: Experiment) -> dict[str, list[Point]]:
    """The points that each arm may choose from, by the arm's name.

    Args:
      grids: one an arm, see `frontier.grid`; what has one value in it names the arm.
      experiment: whose options they are.

    Raises:
      ValueError: for fewer than two arms, two of one name, or arms of unlike numbers of
        points: one would be tuned better than the other.

    Example:
      >>> grids = ["optimizer=sgd epochs=1,2", "optimizer=adamw epochs=1,3"]
      >>> arms(grids, Experiment())["optimizer=adamw"][1]
      {'optimizer': 'adamw', 'epochs': 3}
    """
    found: dict[str, list[Point]] = {}
    for text in grids:
        points = grid(text, experiment)
        first = points[0]
        name = name_of({k: v for k, v in first.items() if values_of(points, k) == [v]})
        if name in found or not name:
            raise ValueError(
                f"{text!r}: an arm is named by the options with one value, and "
                f"{name!r} is " + ("taken" if name else "no name")
            )
        found[name] = points
    counts = {name: len(points) for name, points in found.items()}
    if len(found) < 2 or len(set(counts.values())) > 1:
        raise ValueError(
            f"two arms or more, each with as many points to choose from: {counts}"
        )
    return found


def values_of(points: Sequence[Point], name: str) -> list:
    """The values of an option among some points, each once.

    Example:
      >>> values_of([{"rate": 1}, {"rate": 2}, {"rate": 1}], "rate")
      [1, 2]
    """
    return list(dict.fromkeys(point[name] for point in points))


def race(
    experiment: Experiment, arms: dict[str, list[Point]], folder: pathlib.Path
) -> list[dict[str, Any]]:
    """Runs every point once, and of each arm the best one over all seeds.

    The best is chosen by the first data split that is scored. An experiment with a
    `hold_out` has that part of its training data there, and learns from all of it
    afterwards. A point whose loss or score is not finite is the worst; started again,
    it is tried again.

    Args:
      experiment: with the rest of the options.
      arms: see `arms`.
      folder: gets a folder for each run; started again, it goes on there.

    Returns:
      A row for each arm: `name`; `chosen`, a point, and whether a value of it lies at
      the `border` of those tried; `tried`, all points with what they scored (None
      where that is not finite); `value` and `deviation` of the score in the end over
      seeds, `each` of them; and `curve`, pairs of a step and the mean score then.

    Raises:
      ValueError: for options that make no sense, or a `hold_out` of 0.
      FloatingPointError: when no point of an arm has a finite score, or the loss of its
        best one is not finite for another seed.
    """
    held = getattr(experiment, "hold_out", None)
    if held == 0:
        raise ValueError(
            "hold_out=0: rates would be chosen on the pictures that judge them; leave "
            "some for that, as hold_out=5000"
        )
    experiment = dataclasses.replace(experiment, eval_every=1)
    rest: Point = {} if held is None else {"hold_out": 0}
    for point in (point for points in arms.values() for point in points):
        dataclasses.replace(experiment, **point).validate()
    first, rows = experiment.seeds[0], []
    for name, points in arms.items():
        tried = []
        for point in points:
            one = dataclasses.replace(experiment, **point)
            room = folder / name_of(point) / f"seed_{first}"
            tried.append(_finite(one, first, room))
        finite = [summary for summary in tried if summary is not None]
        if not finite:
            raise FloatingPointError(
                f"{name}: no loss or score is finite at any of its points, {points}: "
                "let it choose from smaller rates"
            )
        better = min if is_lower_better(finite[0]) else max
        best = better(summary["metric"] for summary in finite)
        metrics = [summary and summary["metric"] for summary in tried]
        chosen = points[metrics.index(best)]
        one = dataclasses.replace(experiment, **chosen | rest)
        made = {}
        for seed in experiment.seeds:
            room = folder / name_of(chosen | rest) / f"seed_{seed}"
            made[room] = train(one, seed, room)
        mean, deviation = mean_and_deviation([s["metric"] for s in made.values()])
        summary = next(iter(made.values()))
        rows.append(
            {
                "name": name,
                "chosen": chosen,
                "border": any(_at_border(points, chosen, k) for k in chosen),
                "tried": [
                    {**p, "metric": m} for p, m in zip(points, metrics, strict=True)
                ],
                "tried_on": finite[0]["metric_name"],
                "value": mean,
                "deviation": deviation,
                "unit": summary["metric_name"],
                "lower_is_better": is_lower_better(summary),
                "each": [s["metric"] for s in made.values()],
                "seeds": list(experiment.seeds),
                "curve": _mean_curve(list(made), summary["metric_name"].split()[0]),
            }
        )
    return rows


def _finite(
    experiment: Experiment, seed: int, folder: pathlib.Path
) -> dict[str, Any] | None:
    """The summary of a run; None where its loss or its score is not finite."""
    try:
        summary = train(experiment, seed, folder)
    except FloatingPointError as error:
        logging.warning("%s: %s", folder, error)
        return None
    return summary if math.isfinite(summary["metric"]) else None


def _at_border(points: Sequence[Point], chosen: Point, name: str) -> bool:
    values = values_of(points, name)
    numbers = [v for v in values if type(v) in (int, float)]  # True is no number
    return len(numbers) > 1 and chosen[name] in (min(numbers), max(numbers))


def _mean_curve(folders: Sequence[pathlib.Path], split: str) -> list[tuple[int, float]]:
    scores: dict[int, list[float]] = {}
    for folder in folders:
        for line in log.read(folder):
            if f"{split}_score" in line:
                scores.setdefault(line["step"], []).append(line[f"{split}_score"])
    return [(step, statistics.fmean(values)) for step, values in scores.items()]


def window_of(experiment: Experiment, chosen: dict[str, Point]) -> int:
    """Steps from one inversion of K-FAC's factors to the next, the most of all arms.

    Example:
      >>> window_of(Experiment(), {"one": {}, "two": {"epochs": 2}})
      1
    """
    made = (dataclasses.replace(experiment, **point) for point in chosen.values())
    return max(getattr(one, "kfac_inverse_every", 1) for one in made)


def seconds_of(
    experiment: Experiment,
    chosen: dict[str, Point],
    *,
    window: int,
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    """Seconds of a step of each arm, timed in turn; one for each round.

    Args:
      experiment: the rest of the options.
      chosen: by name.
      window: steps that are timed together; see `window_of`, since not every step
        inverts.
      rounds: how often.
      clock: see `interleaved`.
    """

    def run(step):
        return [step() for _ in range(window)][-1]

    steps = {
        name: functools.partial(
            run, stepper(dataclasses.replace(experiment, **point))[1]
        )
        for name, point in chosen.items()
    }
    times = interleaved(steps, rounds=rounds, warm=1, clock=clock)
    return {name: [t / window for t in values] for name, values in times.items()}
