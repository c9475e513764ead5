"""What a run has to say at its end: summary, tables, pictures."""

import json
import pathlib
import platform
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import jax

from splitjax.optim.curvature import without_own
from splitjax.runtime.meter import Meter
from splitjax.storage import log
from splitjax.train.experiment import Experiment, Parts


def summarize(
    experiment: Experiment,
    seed: int,
    parts: Parts,
    facts: dict[str, Any],
    meter: Meter,
    folder: pathlib.Path,
) -> dict[str, Any]:
    """The summary of one run, written to `summary.json`.

    `baseline_bytes` is what a cut at a layer boundary would have sent in float32 both
    ways for the same real tokens, padding left out; `ratio` is that over all bytes of
    the training frames and of what edge and cloud say besides, everything counted.
    `privacy`, where a link has noise: see `splitjax.train.spending`.
    """
    kinds = [meter.totals(kind=kind) for kind in ("train", "control")]
    sent = {name: sum(kind[name] for kind in kinds) for name in kinds[0]}
    total = sent["bytes_up"] + sent["bytes_down"]
    weights = meter.totals(kind="weights")["bytes_down"]
    baseline = 2 * 4 * parts.baseline_width * facts["tokens"]
    scores = facts["scores"][-1]
    name = next(iter(parts.evals))
    summary = {
        "task": experiment.task,
        "mode": experiment.mode,
        "metric_name": f"{name} {parts.score_name}",
        "metric": scores[name],
        "lower_is_better": parts.lower_is_better,
        "scores": facts["scores"],
        "before": facts["before"],
        "parameters": sum(
            leaf.size for leaf in jax.tree.leaves(without_own(parts.params))
        ),
        "steps": facts["step"],
        "seconds": round(facts["seconds"], 1),
        "tokens": facts["tokens"],
        "bytes_up": sent["bytes_up"],
        "bytes_down": sent["bytes_down"],
        "bytes_setup": weights or parts.setup_bytes,
        "bytes": meter.rows(),
        "baseline_bytes": baseline,
        "state_bytes": facts.get("state_bytes", 0),
        "ratio": round(baseline / total, 2) if total else None,
        "edge_share": round(parts.edge_share, 4),
        "seed": seed,
        **({"privacy": facts["privacy"]} if "privacy" in facts else {}),
        **{n: facts[n] for n in ("attacks", "scrutinizer", "nonfinite") if n in facts},
        **versions(),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def versions() -> dict[str, str]:
    """What the numbers were made with.

    Example:
      >>> sorted(versions())
      ['commit', 'device', 'flax', 'jax', 'python', 'splitjax']
    """
    here = pathlib.Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        commit = found.stdout.strip()
    except OSError:
        commit = ""
    device = jax.devices()[0]
    return {
        "commit": commit or "unknown",
        "device": f"{device.platform} {device.device_kind}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("splitjax", "jax", "flax")},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "a checkout"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value).

    Example:
      >>> mean_and_deviation([1.0, 3.0])
      (2.0, 1.4142135623730951)
    """
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.fmean(values), deviation


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """One line a run, and the mean of each mode, as a Markdown table."""
    head = ("run", "before", "after", "up MB", "down MB", "ratio", "edge", "s")
    leaks = [leaks_of(s) for s in summaries]
    named = tuple(dict.fromkeys(name for found in leaks for name in found))
    head += tuple(name.replace("_", " ") for name in named)
    rows: list[tuple[str, ...]] = []
    for s, found in zip(summaries, leaks, strict=True):
        rows.append(
            (
                f"{s['mode']} seed {s['seed']}",
                _scores(s["before"]),
                _scores({k: v for k, v in s["scores"][-1].items() if k != "epoch"}),
                f"{s['bytes_up'] / 1e6:.3f}",
                f"{s['bytes_down'] / 1e6:.3f}",
                f"{s['ratio']:.1f}x" if s["ratio"] else "-",
                f"{s['edge_share']:.0%}",
                f"{s['seconds']:.0f}",
                *(f"{found[n]:.4f}" if n in found else "-" for n in named),
            )
        )
    for name, text in _means(summaries):
        rows.append((name, "", text, *[""] * (len(head) - 3)))
    return markdown(head, rows)


def leaks_of(summary: dict[str, Any]) -> dict[str, float]:
    """The figures of all attacks on a run, by name.

    Example:
      >>> leaks_of({"attacks": {"dcor": {"dcor": 0.5}}}), leaks_of({})
      ({'dcor': 0.5}, {})
    """
    found: dict[str, float] = {}
    for figures in summary.get("attacks", {}).values():
        found |= figures
    return found


def _means(summaries: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Mean and deviation of each mode, and of the paired differences.

    Those are in points, hundredths; but for a score that is no share, as a perplexity.
    """
    last = {(s["mode"], s["seed"]): s["scores"][-1] for s in summaries}
    splits = tuple(summaries[0]["before"])
    for mode in dict.fromkeys(mode for mode, _ in last):
        seeds = [seed for other, seed in last if other == mode]
        if len(seeds) > 1:
            found = {seed: last[mode, seed] for seed in seeds}
            yield f"{mode} mean ± sd", _each(splits, seeds, found.__getitem__, 1)
    paired = [s for mode, s in last if mode == "split" and ("unsplit", s) in last]
    if paired:

        def difference(seed):
            one, other = last["split", seed], last["unsplit", seed]
            return {name: one[name] - other[name] for name in splits}

        name, scale = "split - unsplit", 1
        if not is_lower_better(summaries[0]):
            name, scale = f"{name}, points", 100
        yield name, _each(splits, paired, difference, scale, sign="+")


def is_lower_better(summary: dict[str, Any]) -> bool:
    """Whether the score of a summary, or of a frontier's row, falls as it improves.

    Example:
      >>> is_lower_better({"metric": 0.5})
      False
    """
    return summary.get("lower_is_better", False)


def _each(splits, seeds, scores, scale, sign="") -> str:
    texts = []
    for name in splits:
        values = [scale * scores(seed)[name] for seed in seeds]
        mean, deviation = mean_and_deviation(values)
        digits = 4 if scale == 1 else 2
        spread = f" ± {deviation:.{digits}f}" if len(values) > 1 else ""
        texts.append(f"{name} {mean:{sign}.{digits}f}{spread}")
    return ", ".join(texts)


def _scores(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with columns of even width.

    Example:
      >>> markdown(("a", "bb"), [("1", "2")]).splitlines()[-1]
      '| 1 | 2  |'
    """
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells):
        cells = [c.ljust(w) for c, w in zip(cells, widths, strict=True)]
        return "| " + " | ".join(cells) + " |"

    return "\n".join([line(head), line(["-" * w for w in widths]), *map(line, rows)])


def plot(runs: dict[str, pathlib.Path], path: pathlib.Path) -> None:
    """Draws the loss and the bytes of some runs to a PNG file.

    Args:
      runs: the folders, by the name to print.
      path: of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, folder in runs.items():
        lines = [line for line in log.read(folder) if "loss" in line]
        steps = [line["step"] for line in lines]
        smooth, value = [], None
        for line in lines:
            value = line["loss"] if value is None else 0.9 * value + 0.1 * line["loss"]
            smooth.append(value)
        left.plot(steps, smooth, label=name)
        sent = [(line["up"] + line["down"]) / 1e6 for line in lines]
        if lines and sent[-1]:
            right.plot(steps, sent, label=name)
            summary = json.loads((folder / "summary.json").read_text())
            per_step = summary["baseline_bytes"] / max(summary["steps"], 1) / 1e6
            right.plot(
                steps,
                [per_step * (i + 1) for i in range(len(steps))],
                "--",
                label=f"{name}: float32 layer cut",
            )
    left.set(xlabel="step", ylabel="training loss (smoothed)")
    right.set(xlabel="step", ylabel="MB sent, both ways")
    if right.get_lines():
        right.set_yscale("log")
        right.legend()
    left.legend()
    figure.savefig(path, dpi=120)
