"""What the demonstration of the hijacking attack has to say: a table, a picture."""

import pathlib
from collections.abc import Sequence
from typing import Any

from splitjax.train.report import markdown, mean_and_deviation


def row(name: str, runs: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict:
    """One arm over its seeds, as JSON.

    Args:
      name: of the arm.
      runs: as `studies.fsha.fsha.play` gives them.
      seeds: of the runs.
    """
    shares = [run["share"] for run in runs if run["share"] is not None]
    mean, deviation = mean_and_deviation(shares) if shares else (None, 0.0)
    return {
        "name": name,
        "value": None if mean is None else round(mean, 4),
        "deviation": round(deviation, 4),
        "unit": "error over the mean picture's",
        "seeds": list(seeds),
        "runs": [{k: v for k, v in run.items() if k != "pictures"} for run in runs],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table.

    Example:
      >>> run = {"ssim": 0.5, "gap_early": 0.1, "gap": 0.2, "flagged": 9, "seconds": 1}
      >>> made = {"name": "plain", "value": 0.25, "deviation": 0.0, "runs": [run]}
      >>> [cell.strip() for cell in table([made]).splitlines()[-1].split("|")[1:7]]
      ['plain', '0.250', '0.50', '0.10', '0.20', '9']
    """
    head = ("arm", "error / mean's", "SSIM", "gap, early", "gap, end", "flagged at")
    cells = []
    for r in rows:
        runs = r["runs"]
        value = "-" if r["value"] is None else f"{r['value']:.3f}"
        value += f" ± {r['deviation']:.3f}" if r["deviation"] else ""
        each = {
            name: [run[name] for run in runs if run[name] is not None]
            for name in ("ssim", "gap_early", "gap", "flagged")
        }
        means = [
            f"{mean_and_deviation(each[name])[0]:.2f}" if each[name] else "-"
            for name in ("ssim", "gap_early", "gap")
        ]
        flagged = ", ".join(map(str, each["flagged"])) or "never"
        cells.append((r["name"], value, *means, flagged))
    return markdown(head, cells)


def plot(
    rows: Sequence[dict[str, Any]], pictures: dict[str, Any], path: pathlib.Path
) -> None:
    """Draws inputs and reconstructions of each arm, and the errors over a run.

    Args:
      rows: as `row` gives them.
      pictures: by arm (2, 8, H, W, C): inputs, and what was made of them, from -1 to 1.
      path: of the PNG.
    """
    import numpy as np
    from matplotlib.figure import Figure

    count = len(pictures)
    figure = Figure(figsize=(14, 0.9 * (count + 1) + 1), layout="constrained")
    grid = figure.add_gridspec(count + 1, 2)
    axes = [figure.add_subplot(grid[number, 0]) for number in range(count + 1)]
    first = next(iter(pictures.values()))[0]
    shown = [("the edge's", first)] + [(name, p[1]) for name, p in pictures.items()]
    for axis, (name, images) in zip(axes, shown, strict=True):
        strip = np.clip(np.concatenate(list(images), 1) / 2 + 0.5, 0, 1)
        axis.imshow(strip.squeeze(), cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    axis = figure.add_subplot(grid[:, 1])
    for r in rows:
        if r["value"] is not None:
            curve = r["runs"][0]["curve"]
            axis.plot(np.linspace(0, 1, len(curve)), curve, label=r["name"])
    axis.set(xlabel="share of the run", ylabel="error of the reconstruction", ylim=0)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
