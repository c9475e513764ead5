"""Sweeps any options: score against measured bytes and, with attacks, what leaks.

Example: python -m experiments.frontier --config=configs/sft_stsb.py \
  --grid='layer=1,2 rank=32' --grid='layer=2 rank=8,16 forward_bits=2,4'

With --config.attack="('inversion','dcor')" every point is attacked, too.
"""

import dataclasses
import json
import sys

from absl import flags as absl_flags
from absl import logging

from splitjax.train import flags, frontier
from splitjax.train.loop import train

LAUNCH = flags.define("configs/sft_stsb.py")
GRID = absl_flags.DEFINE_multi_string(
    "grid",
    ["layer=1,2 rank=16,32"],
    "FIELD=VALUE,VALUE ...: a product; may be repeated",
)


def main(_: list[str]) -> None:
    """Runs the un-split model and every point, each over all seeds."""
    experiment, workdir = LAUNCH.run, LAUNCH.workdir
    workdir.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    for point in ({"mode": "unsplit"}, *frontier.points(GRID.value, experiment)):
        name = frontier.name_of(point)
        one = dataclasses.replace(experiment, **point)
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
