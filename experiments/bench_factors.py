"""What transforms of parameters cost, each against a reference of the same run.

Writes bench_factors.json into --workdir: the projection of LRPET against a full SVD and
a peer's figure, its part of a training run's time, and a low-rank product in a layer
against what its operations leave of the dense one's time. A ratio above its bound ends
the program with an error. On a machine that others use, too, --clock=cpu counts the
time of this process alone.

Example: python -m experiments.bench_factors --workdir=runs/bench --only=projection
"""

import pathlib

from absl import flags as absl_flags

from splitjax.bench import factors
from splitjax.train import flags, timing

WORKDIR = absl_flags.DEFINE_string("workdir", "runs/bench_factors", "where to write")
ROUNDS = absl_flags.DEFINE_integer("rounds", 15, "how often each is timed")
ONLY = absl_flags.DEFINE_string("only", "", "parts whose name has this expression")
CLOCK = absl_flags.DEFINE_enum("clock", "wall", list(timing.CLOCKS), "what is counted")


def main(_: list[str]) -> None:
    """Measures every part in turn."""
    timing.main(
        factors.PARTS,
        pathlib.Path(WORKDIR.value, "bench_factors.json"),
        rounds=ROUNDS.value,
        only=ONLY.value,
        clock=CLOCK.value,
    )


if __name__ == "__main__":
    flags.run(main)
