"""The frontier of a sweep: score against bytes, over places, ranks and bits."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from splitjax.core.tree import nearest
from splitjax.train.experiment import Experiment
from splitjax.train.report import (
    is_lower_better,
    leaks_of,
    markdown,
    mean_and_deviation,
)

MOST_POINTS = 24


def grid(text: str, experiment: Experiment) -> list[dict[str, Any]]:
    """The points of one grid: the product of the values of some fields.

    Args:
      text: "FIELD=VALUE,VALUE FIELD=VALUE"; a value is read as the field's type; the
        parts of a tuple stand with "+" between, and without any it is empty. Within
        brackets, as a codec has them, commas and spaces part nothing.
      experiment: whose fields they are.

    Raises:
      ValueError: for a field that there is not, or a value of another type.

    Example:
      >>> grid("epochs=1,2 mode=split", Experiment())
      [{'epochs': 1, 'mode': 'split'}, {'epochs': 2, 'mode': 'split'}]
      >>> grid("task=cast('f16'),quantize(4, axis='token')", Experiment())[1]
      {'task': "quantize(4, axis='token')"}
    """
    names = tuple(field.name for field in dataclasses.fields(experiment))
    axes = []
    for item in filter(None, _apart(text, " ")):
        name, _, values = item.partition("=")
        if name not in names:
            raise ValueError(f"grid field {name!r}: {nearest(name, names)}")
        now = getattr(experiment, name)
        axes.append([(name, _value(name, v, now)) for v in _apart(values, ",")])
    return [dict(point) for point in itertools.product(*axes)]


def _apart(text: str, separator: str) -> list[str]:
    """Splits a text, but not within brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == separator and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _value(name: str, text: str, now: Any) -> Any:
    if isinstance(now, bool):
        if text not in ("True", "False"):
            raise ValueError(f"grid: {name}={text!r} must be True or False")
        return text == "True"
    kind, parts = type(now), [text]
    if isinstance(now, tuple):
        kind, parts = type(now[0]) if now else str, text.split("+") if text else []
    try:
        values = tuple(kind(part) for part in parts)
    except ValueError as error:
        whole = "tuple of " if isinstance(now, tuple) else ""
        raise ValueError(
            f"grid: {name}={text!r} is no {whole}{kind.__name__}"
        ) from error
    return values if isinstance(now, tuple) else values[0]


def points(grids: Sequence[str], experiment: Experiment) -> list[dict[str, Any]]:
    """The points of several grids, each once.

    Raises:
      ValueError: for more than MOST_POINTS of them: a sweep is not a search.

    Example:
      >>> len(points(["epochs=1,2", "epochs=2,3"], Experiment()))
      3
    """
    found: list[dict[str, Any]] = []
    for point in itertools.chain(*(grid(text, experiment) for text in grids)):
        if point not in found:
            found.append(point)
    if len(found) > MOST_POINTS:
        raise ValueError(f"{len(found)} points: at most {MOST_POINTS} in one sweep")
    return found


def name_of(point: dict[str, Any]) -> str:
    """A point as the name of a folder.

    Example:
      >>> name_of({"rank": 8, "skip": 0})
      'rank=8,skip=0'
    """
    made = ",".join(f"{name}={value}" for name, value in point.items())
    return "".join(c for c in made if c.isalnum() or c in "=,._-+")


def row(name: str, summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a frontier says of one point, from the summaries of its seeds."""
    mean, deviation = mean_and_deviation([s["metric"] for s in summaries])
    first, leaks = summaries[0], [leaks_of(s) for s in summaries]
    return {
        "name": name,
        "value": round(mean, 5),
        "deviation": round(deviation, 5),
        "unit": first["metric_name"],
        "lower_is_better": is_lower_better(first),
        "each": [s["metric"] for s in summaries],
        "before": next(iter(first["before"].values())),
        "ratio": first["ratio"],
        "bytes_up": first["bytes_up"],
        "bytes_down": first["bytes_down"],
        "edge_share": first["edge_share"],
        "seeds": [s["seed"] for s in summaries],
        "seconds": round(sum(s["seconds"] for s in summaries), 1),
        "leaks": {n: mean_and_deviation([f[n] for f in leaks])[0] for n in leaks[0]},
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table; the first is the un-split run.

    The difference to it is in points, hundredths; but for a score that is no share, as
    a perplexity. What attacks found has a column for each figure, where an attack was
    made.
    """
    base = rows[0]["value"]
    unit = rows[0]["unit"]
    scale, digits = (1, 4) if is_lower_better(rows[0]) else (100, 2)
    head = ("point", unit, "to un-split", "ratio", "edge FLOPs", "before", "seconds")
    leaks = _leaks(rows)
    head += tuple(name.replace("_", " ") for name in leaks)
    cells = [
        (
            r["name"],
            f"{r['value']:.4f}"
            + (f" ± {r['deviation']:.4f}" if r["deviation"] else ""),
            f"{scale * (r['value'] - base):+.{digits}f}",
            f"{r['ratio']:.1f}x" if r["ratio"] else "-",
            f"{r['edge_share']:.0%}",
            f"{r['before']:.4f}",
            f"{r['seconds']:.0f}",
            *(f"{r['leaks'][n]:.4f}" if n in r["leaks"] else "-" for n in leaks),
        )
        for r in rows
    ]
    return markdown(head, cells)


def plot(rows: Sequence[dict[str, Any]], path: pathlib.Path, title: str = "") -> None:
    """Draws score against ratio, on a logarithmic axis, to a PNG file.

    The points are numbered, and named in the legend below the picture; a line joins
    those that no other one beats in both score and ratio.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    base, shown = rows[0], [r for r in rows[1:] if r["ratio"]]
    axes.axhline(base["value"], color="gray", ls="--", label="un-split")
    axes.axvline(96, color="gray", ls=":", label="96x")
    best = frontier(shown)
    axes.plot(
        [r["ratio"] for r in best],
        [r["value"] for r in best],
        color="lightgray",
        zorder=1,
        label="best",
    )
    for number, r in enumerate(shown, 1):
        axes.errorbar(
            r["ratio"],
            r["value"],
            r["deviation"] or None,
            fmt="o",
            capsize=3,
            label=f"{number}  {_label(r)}",
        )
        axes.annotate(
            str(number),
            (r["ratio"], r["value"]),
            textcoords="offset points",
            xytext=(6, -4),
            fontsize=9,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}x")
    axes.xaxis.set_minor_formatter("")
    axes.set(
        xlabel="fewer bytes than a float32 layer cut, both ways (in frames)",
        ylabel=base["unit"],
        title=title,
    )
    figure.legend(loc="outside lower center", fontsize=8, ncols=2)
    figure.savefig(path, dpi=120)


def plot_leaks(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws score against what each attack found, one panel for each figure of theirs.

    The points have the numbers of `plot`. Nothing is drawn where no attack was made.
    """
    from matplotlib.figure import Figure

    if not (leaks := _leaks(rows)):
        return
    figure = Figure(figsize=(4 * len(leaks), 4), layout="constrained")
    shown = [r for r in rows[1:] if r["ratio"]]
    panels = figure.subplots(1, len(leaks), squeeze=False)[0]
    for axes, name in zip(panels, leaks, strict=True):
        axes.axhline(rows[0]["value"], color="gray", ls="--")
        for number, r in enumerate(shown, 1):
            if name in r["leaks"]:
                at = r["leaks"][name], r["value"]
                axes.plot(*at, "o")
                axes.annotate(
                    str(number), at, textcoords="offset points", xytext=(6, -4)
                )
        axes.set(xlabel=name.replace("_", " "), ylabel=rows[0]["unit"])
    figure.savefig(path, dpi=120)


def _leaks(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for r in rows for name in r["leaks"]))


def _label(r: dict[str, Any]) -> str:
    return f"{r['name'].replace(',', ', ')} (edge {r['edge_share']:.0%})"


def frontier(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that no other one beats in both score and ratio, by their ratio.

    Example:
      >>> rows = [{"ratio": r, "value": v} for r, v in ((9, 1), (5, 3), (4, 2))]
      >>> [r["ratio"] for r in frontier(rows)]
      [5, 9]
      >>> [r["ratio"] for r in frontier([{**r, "lower_is_better": True} for r in rows])]
      [9]
    """

    def worth(r):
        return -r["value"] if is_lower_better(r) else r["value"]

    best: list[dict[str, Any]] = []
    for r in sorted(rows, key=lambda r: (-r["ratio"], -worth(r))):
        if not best or worth(r) > worth(best[-1]):
            best.append(r)
    return best[::-1]
