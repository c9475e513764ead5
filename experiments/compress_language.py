"""Compresses a pretrained language model, each way and to each size.

Example: python -m experiments.compress_language --config.shares='(0.9,)' \
  --config.tokens=4096

With LRPET fine-tuning after each compression: --config.tune=lrpet
"""

import sys

from splitjax.studies.compress.language import compress_language
from splitjax.studies.compress.table import plot, table
from splitjax.train import flags

LAUNCH = flags.define("configs/wsvd_smollm2_wikitext.py")


def main(_: list[str]) -> None:
    """Makes and prints the table."""
    experiment, folder = LAUNCH.experiment, LAUNCH.workdir
    rows = compress_language(experiment, folder)
    text = table(rows)
    (folder / "compress.md").write_text(text + "\n")
    title = f"{experiment.model} on {experiment.corpus}"
    plot(rows, folder / "compress.png", title=title)
    sys.stdout.write(f"\n{text}\n\nSee {folder / 'compress.png'}\n")


if __name__ == "__main__":
    flags.run(main)
