"""Serves the cloud's half of an experiment to its edges, until it is told to end.

Example: python -m experiments.cloud --config=configs/sft_stsb.py \
  --address=0.0.0.0:50051 --certificates=certificates/cloud
"""

import sys

from absl import flags as absl_flags

from splitjax.train import door_flags, flags
from splitjax.train.processes import serve

LAUNCH = flags.define("configs/sft_stsb.py")
door_flags.define("localhost:50051")
SLOTS = absl_flags.DEFINE_integer("slots", 1, "edges at once", lower_bound=1)
LEASE = absl_flags.DEFINE_float(
    "lease", 120.0, "seconds that an edge may be silent", lower_bound=0.1
)


def main(_: list[str]) -> None:
    """Serves."""
    serve(
        LAUNCH.run,
        door_flags.door(),
        LAUNCH.workdir,
        slots=SLOTS.value,
        lease_seconds=LEASE.value,
        watch=sys.stdout.isatty(),
    )


if __name__ == "__main__":
    flags.run(main)
