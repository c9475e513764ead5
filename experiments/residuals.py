"""Trains a small CNN whose backward pass keeps compressed activations (COMET).

Beside the same network that keeps them whole: accuracy, real ratio, memory.
"""

import json
import sys

from absl import logging

from splitjax.studies.residuals import residuals
from splitjax.train import flags

LAUNCH = flags.define("configs/comet_digits.py")


def main(_: list[str]) -> None:
    """Runs every arm and seed; writes residuals.json and table.md."""
    options, workdir = LAUNCH.experiment, LAUNCH.workdir
    options.validate()
    workdir.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.arms:
        logging.info("%s", name)
        runs = [residuals.play(options, name, seed) for seed in options.seeds]
        rows.append({"name": name, "seeds": list(options.seeds), "runs": runs})
        (workdir / "residuals.json").write_text(json.dumps(rows, indent=2) + "\n")
        (workdir / "table.md").write_text(residuals.table(rows) + "\n")
    sys.stdout.write(f"\n{residuals.table(rows)}\n")


if __name__ == "__main__":
    flags.run(main)
