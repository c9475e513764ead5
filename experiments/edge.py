"""Trains the edge's half of an experiment, with the data that is here, over a cloud.

Example: python -m experiments.edge --config=configs/sft_stsb.py \
  --address=cloud.example.org:50051 --certificates=certificates/edge_0
"""

import dataclasses
import sys

from absl import flags as absl_flags

from splitjax.train import door_flags, flags, report
from splitjax.train.loop import ToCloud, train

LAUNCH = flags.define("configs/sft_stsb.py")
door_flags.define("localhost:50051")
SLOT = absl_flags.DEFINE_integer("slot", 0, "of this edge", lower_bound=0)
DEADLINE = absl_flags.DEFINE_float(
    "deadline", 120.0, "seconds of silence after which a connection is dead"
)
PATIENCE = absl_flags.DEFINE_float(
    "patience", 300.0, "seconds to dial again before giving up"
)


def main(_: list[str]) -> None:
    """Runs every seed, one after the other."""
    experiment = dataclasses.replace(LAUNCH.experiment, mode="split")
    door = door_flags.door()
    cloud = ToCloud(door.dial, SLOT.value, DEADLINE.value, PATIENCE.value)
    summaries = []
    for seed in experiment.seeds:
        folder = LAUNCH.workdir / f"split_seed_{seed}"
        summaries.append(train(experiment, seed, folder, cloud=cloud))
    sys.stdout.write(f"\n{report.table(summaries)}\n")


if __name__ == "__main__":
    flags.run(main)
