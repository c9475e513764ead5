"""What the cloud's parts cost, each against its stock form in the same run.

Writes bench_cloud.json into --workdir. The parts, which --only chooses from by an
expression on their names:

* kernels/block: a BERT layer on fused kernels against the stock one: time, bytes that
  its compiled program accesses, and bytes kept for the backward pass.
* kernels/layer_norm, kernels/cross_entropy, kernels/adam: against Flax, optax, and the
  speed of a copy in memory. On a GPU or a TPU the Pallas programs are timed as well.
* pipeline/schedules: schedules in simulation: the shifted critical path and GPipe
  against 1f1b. Nothing is timed.
* pipeline/perceptron: two stages at the size of a figure of torch's, as one program
  (spmd) and as one a stage (mpmd), against the step that is not cut.
* pipeline/plan: a planned cut of two uneven models against the even one: makespans
  foretold, and by operations that are timed one by one.

Nothing has a bound: on a CPU these are XLA's fusions against XLA's fusions. On a
machine that others use, too, --clock=cpu counts the time of this process alone.

Example: python -m experiments.bench_cloud --workdir=runs/bench --only=kernels
"""

import pathlib

from absl import flags as absl_flags

from splitjax.bench import kernels, pipeline, plan, schedule
from splitjax.train import flags, timing

WORKDIR = absl_flags.DEFINE_string("workdir", "runs/bench_cloud", "where to write")
ROUNDS = absl_flags.DEFINE_integer("rounds", 15, "how often each is timed")
ONLY = absl_flags.DEFINE_string("only", "", "parts whose name has this expression")
CLOCK = absl_flags.DEFINE_enum("clock", "wall", list(timing.CLOCKS), "what is counted")
# Those that need more devices come later: see `studies.plan.times`.
PARTS = {
    **kernels.PARTS,
    **schedule.PARTS,
    **pipeline.PARTS,
    **plan.PARTS,
}


def main(_: list[str]) -> None:
    """Measures every part in turn."""
    timing.main(
        PARTS,
        pathlib.Path(WORKDIR.value, "bench_cloud.json"),
        rounds=ROUNDS.value,
        only=ONLY.value,
        clock=CLOCK.value,
    )


if __name__ == "__main__":
    flags.run(main)
