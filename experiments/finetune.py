"""Fine-tunes a cut model, and with --config.compare=True the un-split one beside it.

With --config.mode=processes edge and cloud are two processes, over TLS on loopback.
"""

import dataclasses
import json
import sys

from absl import logging

from splitjax.train import flags, processes, report
from splitjax.train.loop import train

LAUNCH = flags.define("configs/sft_stsb.py")


def main(_: list[str]) -> None:
    """Runs every mode and seed, one after the other, and reports on them together."""
    experiment, workdir = LAUNCH.experiment, LAUNCH.workdir
    experiment.validate()
    runs = {experiment.mode: experiment}
    if experiment.mode == "processes":
        # They leave finished runs, which are read below, and not run again.
        if status := processes.both(flags.config_arguments(), workdir):
            sys.exit(status)
        runs = {"split": dataclasses.replace(experiment, mode="split")}
    if experiment.compare and experiment.mode != "unsplit":
        runs["unsplit"] = experiment.unsplit()
    summaries, folders = [], {}
    for seed in experiment.seeds:
        for mode, one in runs.items():
            folder = workdir / f"{mode}_seed_{seed}"
            logging.info("%s, seed %d -> %s", mode, seed, folder)
            summaries.append(train(one, seed, folder))
            folders[f"{mode} seed {seed}"] = folder
    (workdir / "summary.json").write_text(json.dumps(summaries, indent=2) + "\n")
    report.plot(folders, workdir / "curves.png")
    text = report.table(summaries)
    (workdir / "table.md").write_text(text + "\n")
    sys.stdout.write(f"\n{text}\n\nThe curves are in {workdir / 'curves.png'}\n")


if __name__ == "__main__":
    flags.run(main)
