"""The rows of a compression as a table, and as a picture."""

import pathlib
from collections.abc import Sequence

from splitjax.studies.compress.compression import Row
from splitjax.train.report import markdown


def table(made: Sequence[Row]) -> str:
    """The rows as a Markdown table; "-" where a row has nothing to tell."""
    head = ("point", "parameters", "MB", "MFLOPs", "error", "weighted", "before")
    head += ("after", "tuned", "coded", "coded MB", "fit s")
    cells = [
        (
            r["name"],
            f"{r['parameters'] / 1e6:.3f}M",
            f"{r['bytes'] / 1e6:.2f}",
            f"{r['flops'] / 1e6:.1f}",
            f"{r['error']:.4f}",
            _number(r["weighted_error"]),
            f"{r['before']:.4f}",
            f"{r['value']:.4f}",
            _number(r["tuned"]),
            _number(r["coded"]),
            "-" if r["coded_bytes"] is None else f"{r['coded_bytes'] / 1e6:.2f}",
            f"{r['fit_seconds']:.0f}",
        )
        for r in made
    ]
    return f"{made[0]['unit']}\n\n{markdown(head, cells)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def plot(made: Sequence[Row], path: pathlib.Path, title: str = "") -> None:
    """Draws score against bytes, a line for each factor and step, to a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(made[0]["value"], color="gray", ls="--", label="dense")
    steps = (("bytes", "value", "o-", ""), ("bytes", "tuned", "s:", ", tuned"))
    steps += (("coded_bytes", "coded", "^--", ", coded"),)
    for number, factor in enumerate(dict.fromkeys(r["factor"] for r in made[1:])):
        mine = [r for r in made if r["factor"] == factor]
        for size, value, style, label in steps:
            some = [r for r in mine if r[value] is not None]
            points = sorted((r[size] / 1e6, r[value]) for r in some)
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, style, color=f"C{number}", label=f"{factor}{label}")
    axes.set(xlabel="MB of parameters", ylabel=made[0]["unit"], title=title)
    axes.legend()
    figure.savefig(path, dpi=120)
