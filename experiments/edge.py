"""Trains the edge's half of an experiment, with the data that is here, over a cloud.

Example: python -m experiments.edge --config=configs/sft_stsb.py \
  --address=cloud.example.org:50051 --certificates=certificates/edge_0
"""

import sys

from splitjax.train import door_flags, flags, report
from splitjax.train.loop import train

LAUNCH = flags.define("configs/sft_stsb.py")
door_flags.define_edge("localhost:50051")


def main(_: list[str]) -> None:
    """Runs every seed, one after the other."""
    experiment = LAUNCH.run
    cloud = door_flags.to_cloud()
    summaries = []
    for seed in experiment.seeds:
        folder = LAUNCH.workdir / f"split_seed_{seed}"
        summaries.append(train(experiment, seed, folder, cloud=cloud))
    sys.stdout.write(f"\n{report.table(summaries)}\n")


if __name__ == "__main__":
    flags.run(main)
