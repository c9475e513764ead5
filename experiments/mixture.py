"""Runs dense blocks, plain experts and experts that share, on one mixture of tasks.

Writes mixture.json and mixture.md into --workdir: scores against total parameters.
"""

import dataclasses
import json
import sys

from absl import flags as absl_flags
from absl import logging

from splitjax.studies.mixture import mixture, report
from splitjax.train import flags
from splitjax.train.loop import train

LAUNCH = flags.define("configs/mpoe_minilm.py")
FFN = absl_flags.DEFINE_list("ffn", [*mixture.FFN], "which blocks to run")


def main(_: list[str]) -> None:
    """Runs every kind of block and seed, one after the other, and reports on them."""
    experiment, workdir = LAUNCH.run, LAUNCH.workdir
    workdir.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    for ffn in FFN.value:
        one = dataclasses.replace(experiment, ffn=ffn)
        summaries = []
        for seed in experiment.seeds:
            logging.info("%s, seed %d", ffn, seed)
            summaries.append(train(one, seed, workdir / ffn / f"seed_{seed}"))
        rows.append(report.row(ffn, summaries))
        text = report.table(rows)
        (workdir / "mixture.json").write_text(json.dumps(rows, indent=2) + "\n")
        (workdir / "mixture.md").write_text(text + "\n")
    sys.stdout.write(f"\n{text}\n\nSee {workdir / 'mixture.md'}\n")


if __name__ == "__main__":
    flags.run(main)
