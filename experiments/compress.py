"""Compresses a fine-tuned model, each way and to each size: cost, error and score.

Example: python -m experiments.compress --config=configs/wsvd_minilm_stsb.py \
  --config.shares='(0.5,)'

By FWSVD, fine-tuned by LRPET, with SmartDeal on top: --config.factors="('fwsvd',)" \
  --config.tune=lrpet --config.codes=0.5
"""

import sys

from absl import logging

from splitjax.studies.compress import compress
from splitjax.studies.compress.table import plot, table
from splitjax.train import flags

LAUNCH = flags.define("configs/wsvd_minilm_stsb.py")


def main(_: list[str]) -> None:
    """Makes and prints the table of each seed."""
    experiment = LAUNCH.experiment
    for seed in experiment.seeds:
        folder = LAUNCH.workdir / f"seed_{seed}"
        logging.info("seed %d -> %s", seed, folder)
        rows = compress.compress(experiment, seed, folder)
        text = table(rows)
        (folder / "compress.md").write_text(text + "\n")
        plot(rows, folder / "compress.png", title=experiment.task)
        sys.stdout.write(f"\nseed {seed}: {text}\n\nSee {folder / 'compress.png'}\n")


if __name__ == "__main__":
    flags.run(main)
