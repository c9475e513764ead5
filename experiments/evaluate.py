"""Scores a trained run through its cut: give the config and options it ran with."""

import json
import sys

from splitjax.train import flags
from splitjax.train.loop import evaluate, open_trained

LAUNCH = flags.define("configs/sft_stsb.py")


def main(_: list[str]) -> None:
    """Prints one line of JSON for each seed."""
    experiment = LAUNCH.experiment
    for seed in experiment.seeds:
        folder = LAUNCH.workdir / f"{experiment.mode}_seed_{seed}"
        run = open_trained(experiment, seed, folder)
        meter = run.driver.meter
        before = meter.totals(kind="predict")  # of the run's own evaluations
        scores = evaluate(run)
        after = meter.totals(kind="predict")
        sent = {name: after[name] - before[name] for name in after}
        line = {"seed": seed, "step": run.state.step, **scores, **sent}
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    flags.run(main)
