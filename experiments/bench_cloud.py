"""What the cloud's parts cost, each against its stock form in the same run.

Writes bench_cloud.json into --workdir. The parts, which --only chooses from by an
expression on their names:

* kernels/block: a BERT layer on fused kernels against the stock one: time, bytes that
  its compiled program accesses, and bytes kept for the backward pass.
* kernels/layer_norm, kernels/cross_entropy, kernels/adam: against Flax, optax, and the
  speed of a copy in memory. On a GPU or a TPU the Pallas programs are timed as well.

Nothing has a bound: on a CPU these are XLA's fusions against XLA's fusions. On a
machine that others use, too, --clock=cpu counts the time of this process alone.

Example: python -m experiments.bench_cloud --workdir=runs/bench --only=kernels
"""

import pathlib

from absl import flags as absl_flags

from splitjax.train import bench, bench_kernels, flags

WORKDIR = absl_flags.DEFINE_string("workdir", "runs/bench_cloud", "where to write")
ROUNDS = absl_flags.DEFINE_integer("rounds", 15, "how often each is timed")
ONLY = absl_flags.DEFINE_string("only", "", "parts whose name has this expression")
CLOCK = absl_flags.DEFINE_enum("clock", "wall", list(bench.CLOCKS), "what is counted")


def main(_: list[str]) -> None:
    """Measures every part in turn."""
    bench.main(
        bench_kernels.PARTS,
        pathlib.Path(WORKDIR.value, "bench_cloud.json"),
        rounds=ROUNDS.value,
        only=ONLY.value,
        clock=CLOCK.value,
    )


if __name__ == "__main__":
    flags.run(main)
