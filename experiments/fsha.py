"""Shows the feature-space hijacking attack on edges with several defenses."""

import json
import sys

from absl import logging

from splitjax.studies.fsha import report
from splitjax.studies.fsha.fsha import play
from splitjax.studies.fsha.options import ARMS
from splitjax.train import flags

LAUNCH = flags.define("configs/fsha_digits.py")


def main(_: list[str]) -> None:
    """Runs every arm and seed; writes fsha.json, table.md and fsha.png."""
    hijack, workdir = LAUNCH.experiment, LAUNCH.workdir
    hijack.validate()
    workdir.mkdir(parents=True, exist_ok=True)
    rows, pictures = [], {}
    for name in hijack.arms:
        logging.info("%s", name)
        runs = [play(hijack, ARMS[name], seed) for seed in hijack.seeds]
        rows.append(report.row(name, runs, hijack.seeds))
        if runs[0]["share"] is not None:
            pictures[name] = runs[0]["pictures"]
        (workdir / "fsha.json").write_text(json.dumps(rows, indent=2) + "\n")
        (workdir / "table.md").write_text(report.table(rows) + "\n")
        if pictures:
            report.plot(rows, pictures, workdir / "fsha.png")
    sys.stdout.write(f"\n{report.table(rows)}\n\nSee {workdir / 'fsha.png'}\n")


if __name__ == "__main__":
    flags.run(main)
