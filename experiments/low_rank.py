"""Trains at a low rank, and plainly, and truncates what was trained plainly.

Writes table.md and summary.json beside the runs: parameters, multiply-adds of a
picture, and scores of each, all but the plain one as products of two kernels.
"""

import json
import sys

from splitjax.studies.low_rank import compare
from splitjax.train import flags, report

LAUNCH = flags.define("configs/lrpet_cifar_resnet.py")


def main(_: list[str]) -> None:
    """Compares for every seed, one after the other."""
    experiment, workdir = LAUNCH.experiment, LAUNCH.workdir
    experiment.validate()
    rows = []
    for seed in experiment.seeds:
        rows += compare(experiment, seed, workdir)
    (workdir / "summary.json").write_text(json.dumps(rows, indent=2) + "\n")
    about = ("name", "seed", "parameters", "macs")
    splits = [name for name in rows[0] if name not in about]
    head = ("model", "seed", "parameters", "MMACs", *splits)
    cells = [
        (
            row["name"],
            str(row["seed"]),
            f"{row['parameters']:,}",
            f"{row['macs'] / 1e6:.2f}",
            *(f"{row[split]:.4f}" for split in splits),
        )
        for row in rows
    ]
    text = report.markdown(head, cells)
    (workdir / "table.md").write_text(text + "\n")
    sys.stdout.write(f"\n{text}\n")


if __name__ == "__main__":
    flags.run(main)
