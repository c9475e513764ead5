"""What a race of optimizers found: what each took to get as far as all do."""

import json
import pathlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from splitjax.studies.frontier import name_of
from splitjax.studies.optimizers.race import values_of
from splitjax.train.report import markdown


def compared(
    rows: Sequence[dict[str, Any]], times: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """The rows with what they cost.

    Each gets `seconds` of a step, its `ratio` to the first arm's within a round (the
    median of both), the `target`, which is the worst of the arms' scores in the end,
    and `steps_to` it and `seconds_to` it: when an arm first scored it, as far as its
    scores tell.
    """
    worst = max if rows[0]["lower_is_better"] else min
    target = worst(row["value"] for row in rows)
    reference, made = times[rows[0]["name"]], []
    for row in rows:
        own = times[row["name"]]
        seconds = statistics.median(own)
        steps = next(_reached(row, target))
        pairs = zip(own, reference, strict=True)
        made.append(
            {
                **row,
                "seconds": seconds,
                "ratio": statistics.median(a / b for a, b in pairs),
                "target": target,
                "steps_to": steps,
                "seconds_to": steps * seconds,
            }
        )
    return made


def _reached(row: dict[str, Any], target: float) -> Iterator[int]:
    sign = -1 if row["lower_is_better"] else 1
    return (step for step, score in row["curve"] if sign * score >= sign * target)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `compared` as a Markdown table."""
    target = f"{rows[0]['target']:.4f}"
    head = ("arm", "chosen", f"{rows[0]['unit']}, in the end", "a step", "ratio")
    head += (f"steps to {target}", f"seconds to {target}")
    cells = [
        (
            row["name"],
            name_of({k: v for k, v in row["chosen"].items() if _varies(row, k)})
            + (" (at the border)" if row["border"] else ""),
            f"{row['value']:.4f}"
            + (f" ± {row['deviation']:.4f}" if len(row["each"]) > 1 else ""),
            f"{1e3 * row['seconds']:.3g} ms",
            f"{row['ratio']:.2f}",
            str(row["steps_to"]),
            f"{row['seconds_to']:.1f}",
        )
        for row in rows
    ]
    return markdown(head, cells)


def _varies(row: dict[str, Any], name: str) -> bool:
    return len(values_of(row["tried"], name)) > 1


def write(rows: Sequence[dict[str, Any]], folder: pathlib.Path, title: str) -> str:
    """Writes optimizers.json, .md and .png into a folder, and gives the table."""
    from matplotlib.figure import Figure

    shown = table(rows)
    (folder / "optimizers.json").write_text(json.dumps(list(rows), indent=2) + "\n")
    (folder / "optimizers.md").write_text(shown + "\n")
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, unit in zip(figure.subplots(1, 2), ("steps", "seconds"), strict=True):
        for row in rows:
            scale = row["seconds"] if unit == "seconds" else 1
            steps, scores = zip(*row["curve"], strict=True)
            axes.plot([s * scale for s in steps], scores, "o-", label=row["name"])
        axes.set(xlabel=unit, ylabel=row["unit"], title=title)
        axes.legend()
    figure.savefig(folder / "optimizers.png", dpi=120)
    return shown
