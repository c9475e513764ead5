"""Scores a trained run through its cut: give the config and options it ran with.

The edge's half of a run asks the cloud that has the other: --address, --certificates.
"""

import json
import sys

from splitjax.train import door_flags, flags
from splitjax.train.runs import evaluate, trained

LAUNCH = flags.define("configs/sft_stsb.py")
door_flags.define_edge("")


def main(_: list[str]) -> None:
    """Prints one line of JSON for each seed."""
    experiment = LAUNCH.run
    for seed in experiment.seeds:
        folder = LAUNCH.workdir / f"{experiment.mode}_seed_{seed}"
        with trained(experiment, seed, folder, door_flags.to_cloud()) as run:
            meter = run.driver.meter
            before = meter.totals(kind="predict")  # of the run's own evaluations
            scores = evaluate(run)
            after = meter.totals(kind="predict")
        sent = {name: after[name] - before[name] for name in after}
        line = {"seed": seed, "step": run.state.step, **scores, **sent}
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    flags.run(main)
