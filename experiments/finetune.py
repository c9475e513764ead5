"""Fine-tunes a cut model, and with --config.compare=True the un-split one beside it."""

import dataclasses
import json
import pathlib
import sys

from absl import app, flags, logging

from splitjax.train import report
from splitjax.train.flags import define
from splitjax.train.loop import train

CONFIG = define("configs/sft_stsb.py")


def main(_: list[str]) -> None:
    """Runs every mode and seed, one after the other, and reports on them together."""
    experiment = CONFIG.value
    name = pathlib.Path(flags.FLAGS["config"].config_filename).stem
    workdir = pathlib.Path(flags.FLAGS.workdir or f"runs/{name}")
    modes = [experiment.mode]
    if experiment.compare and experiment.mode != "unsplit":
        modes.append("unsplit")
    summaries, folders = [], {}
    for seed in experiment.seeds:
        for mode in modes:
            folder = workdir / f"{mode}_seed_{seed}"
            logging.info("%s, seed %d -> %s", mode, seed, folder)
            one = dataclasses.replace(experiment, mode=mode)
            summaries.append(train(one, seed, folder))
            folders[f"{mode} seed {seed}"] = folder
    (workdir / "summary.json").write_text(json.dumps(summaries, indent=2) + "\n")
    report.plot(folders, workdir / "curves.png")
    text = report.table(summaries)
    (workdir / "table.md").write_text(text + "\n")
    sys.stdout.write(f"\n{text}\n\nThe curves are in {workdir / 'curves.png'}\n")


if __name__ == "__main__":
    app.run(main)
