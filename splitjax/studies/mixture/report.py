"""Scores on a mixture of tasks, against the parameters of the model."""

from collections.abc import Sequence
from typing import Any

from splitjax.train.report import markdown, mean_and_deviation


def row(name: str, summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One kind of block, over its seeds.

    Example:
      >>> summary = {"metric": 0.5, "metric_name": "dev accuracy", "parameters": 8,
      ...     "scores": [{"epoch": 1, "dev": 0.5, "rte": 0.5}], "seed": 0,
      ...     "before": {"dev": 0.4}, "seconds": 1.0, "steps": 3}
      >>> row("dense", [summary])["tasks"]
      {'rte': 0.5}
    """
    first = summaries[0]
    value, deviation = mean_and_deviation([s["metric"] for s in summaries])
    last = [s["scores"][-1] for s in summaries]
    tasks = [task for task in last[0] if task not in ("epoch", "dev")]
    return {
        "name": name,
        "value": value,
        "unit": first["metric_name"],
        "deviation": deviation,
        "before": mean_and_deviation([s["before"]["dev"] for s in summaries])[0],
        "tasks": {t: mean_and_deviation([s[t] for s in last])[0] for t in tasks},
        "parameters": first["parameters"],
        "steps": first["steps"],
        "seeds": [s["seed"] for s in summaries],
        "seconds": round(sum(s["seconds"] for s in summaries), 1),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table; parameters also as multiples of the first row's."""
    base = rows[0]["parameters"]
    names = tuple(rows[0]["tasks"])
    head = ("blocks", "parameters", "times", rows[0]["unit"], *names, "before", "s")
    cells = [
        (
            r["name"],
            f"{r['parameters'] / 1e6:.2f}M",
            f"{r['parameters'] / base:.2f}x",
            f"{r['value']:.4f}"
            + (f" ± {r['deviation']:.4f}" if r["deviation"] else ""),
            *(f"{r['tasks'][name]:.4f}" for name in names),
            f"{r['before']:.4f}",
            f"{r['seconds']:.0f}",
        )
        for r in rows
    ]
    return markdown(head, cells)
