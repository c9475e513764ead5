"""Timing a step, and writing what a benchmark found."""

import dataclasses
import json
import os
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from splitjax.train.report import markdown, versions

Row = dict[str, Any]
Timed = Callable[..., dict[str, list[float]]]  # `interleaved`, with its rounds given
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def interleaved(
    steps: dict[str, Callable[[], Any]],
    *,
    rounds: int,
    warm: int = 2,
    before: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Times some steps in turn, so that a slow moment of the machine meets all alike.

    Args:
      steps: by name; what a call returns is waited for.
      rounds: how often each is timed.
      warm: calls of each before, to compile and to fill caches.
      before: calls of a step right before each timed one: its data is in the caches.
      clock: in seconds. `time.process_time` leaves out what other programs took, for a
        step that one core does alone.

    Returns:
      Seconds by name, one for each round.

    Example:
      >>> times = interleaved({"a": lambda: 1}, rounds=3)
      >>> len(times["a"])
      3
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(warm):
            jax.block_until_ready(step())
    for _ in range(rounds):
        for name, step in steps.items():
            for _ in range(before):
                jax.block_until_ready(step())
            start = clock()
            jax.block_until_ready(step())
            times[name].append(clock() - start)
    return times


@dataclasses.dataclass(frozen=True)
class Watch:
    """`interleaved` with its rounds and its clock, for parts that read those, too.

    Attributes:
      rounds: see `interleaved`.
      clock: likewise.

    Example:
      >>> len(Watch(3)({"a": lambda: 1})["a"])
      3
    """

    rounds: int
    clock: Callable[[], float] = time.perf_counter

    def __call__(
        self, steps: dict[str, Callable[[], Any]], **more: Any
    ) -> dict[str, list[float]]:
        """Times some steps in turn."""
        return interleaved(steps, rounds=self.rounds, clock=self.clock, **more)


Part = Callable[[Watch], list[Row]]


def rows(
    times: dict[str, list[float]], reference: str, bounds: dict[str, float]
) -> list[dict[str, Any]]:
    """Medians, and their ratios to a reference measured in the same run.

    The ratio is the median over rounds of the ratio within a round.

    Example:
      >>> rows({"a": [1.0], "b": [2.0]}, "a", {"b": 3.0})[1]["ratio"]
      2.0
    """
    made = []
    for name, values in times.items():
        pairs = zip(values, times[reference], strict=True)
        made.append(
            {
                "name": name,
                "value": statistics.median(values),
                "unit": "s",
                "reference": reference,
                "ratio": statistics.median(a / b for a, b in pairs),
                "bound": bounds.get(name),
            }
        )
    return made


def write(made: Sequence[dict[str, Any]], path: pathlib.Path) -> str:
    """Writes the rows to a JSON file, and gives them as a Markdown table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": made, **versions()}, indent=2) + "\n")
    head = ("name", "value", "against", "ratio", "bound")
    cells = [
        (
            row["name"],
            _cell(row["value"], row["unit"]),
            row["reference"],
            f"{row['ratio']:.3f}",
            "-" if row["bound"] is None else f"{row['bound']:.2f}",
        )
        for row in made
    ]
    return markdown(head, cells)


def finish(made: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Writes and prints the rows; ends the program where one is above its bound.

    Raises:
      SystemExit: naming the rows that are.

    Example:
      >>> row = {"name": "a", "value": 1.0, "unit": "s", "reference": "b", "ratio": 2.0}
      >>> finish([row | {"bound": 1.0}], pathlib.Path("/tmp/splitjax/bench.json"))
      Traceback (most recent call last):
      ...
      SystemExit: above their bounds:
      a: 2.00
    """
    sys.stdout.write(f"{write(made, path)}\n")
    over = [row for row in made if row["bound"] and row["ratio"] > row["bound"]]
    if over:
        lines = [f"{row['name']}: {row['ratio']:.2f}" for row in over]
        raise SystemExit("above their bounds:\n" + "\n".join(lines))


def main(
    parts: dict[str, Part], path: pathlib.Path, *, rounds: int, only: str, clock: str
) -> None:
    """What a benchmark of some parts does: each in turn, on one core, then `finish`.

    Args:
      parts: by name; each is given a `Watch` of the rounds and the clock.
      path: of the JSON file that the rows are written to.
      rounds: see `interleaved`.
      only: an expression; parts whose name does not have it are left out.
      clock: a name of `CLOCKS`.

    Raises:
      SystemExit: when no part is left, and as `finish` does.
    """
    chosen = [part for name, part in parts.items() if re.search(only, name)]
    if not chosen:
        raise SystemExit(f"--only={only}: no such part; there are: {', '.join(parts)}")
    # XLA counts the cores when it starts.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    watch = Watch(rounds, CLOCKS[clock])
    finish([row for part in chosen for row in part(watch)], path)


def _cell(value: float, unit: str) -> str:
    if unit == "s":
        return f"{1e3 * value:.3g} ms" if value < 0.1 else f"{1e3 * value:.0f} ms"
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
