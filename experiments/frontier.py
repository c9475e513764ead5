"""Sweeps any options: score against measured bytes and, with attacks, what leaks.

Example: python -m experiments.frontier --config=configs/sft_stsb.py \
  --grid='layer=1,2 rank=32' --grid='layer=2 rank=8,16 forward_bits=2,4'

Without --grid the points are those that the config file proposes (its GRID). Started
again, the same command keeps the points that are done and goes on in the one that is
not. With --config.attack="('inversion','dcor')" every point is attacked, too.
"""

import dataclasses
import json
import sys

from absl import flags as absl_flags
from absl import logging

from splitjax.studies import frontier
from splitjax.train import flags
from splitjax.train.loop import train

LAUNCH = flags.define("configs/sft_stsb.py")
GRID = absl_flags.DEFINE_multi_string(
    "grid",
    None,
    "FIELD=VALUE,VALUE ...: a product; may be repeated; by default the config's GRID",
)


def main(_: list[str]) -> None:
    """Runs the un-split model and every point, each over all seeds."""
    experiment, workdir = LAUNCH.run, LAUNCH.workdir
    grids = GRID.value or flags.proposed(LAUNCH.path, "GRID")
    points = frontier.points(grids, experiment)
    names = ["mode=unsplit", *map(frontier.name_of, points)]
    runs = [experiment.unsplit()]
    runs += [dataclasses.replace(experiment, **point) for point in points]
    for one in runs:
        one.validate()
    workdir.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    for name, one in zip(names, runs, strict=True):
        summaries = []
        for seed in experiment.seeds:
            logging.info("%s, seed %d", name, seed)
            summaries.append(train(one, seed, workdir / name / f"seed_{seed}"))
        rows.append(frontier.row(name, summaries))
        (workdir / "frontier.json").write_text(json.dumps(rows, indent=2) + "\n")
        (workdir / "frontier.md").write_text(frontier.table(rows) + "\n")
        frontier.plot(rows, workdir / "frontier.png", title=experiment.task)
        frontier.plot_leaks(rows, workdir / "leaks.png")
    sys.stdout.write(f"\n{frontier.table(rows)}\n\nSee {workdir / 'frontier.png'}\n")


if __name__ == "__main__":
    flags.run(main)
