"""What a device of an experiment's cloud holds: predicted, and as compiled.

A row for each stage of ZeRO, without and with recomputation; nothing is trained. Writes
memory.md and memory.json into --workdir. On a CPU the devices are virtual.

Example: python -m experiments.memory --config=configs/zero_minilm.py
"""

import math
import sys

import jax
from absl import flags as absl_flags

from splitjax.parallel.mesh import parse
from splitjax.studies import memory as memory_report
from splitjax.train import flags
from splitjax.train.scaled import RECOMPUTE

LAUNCH = flags.define("configs/zero_minilm.py")
WAYS = absl_flags.DEFINE_list(
    "recompute", ["none", "full"], f"which of {RECOMPUTE} have rows"
)


def main(_: list[str]) -> None:
    """Makes and prints the table."""
    experiment, folder = LAUNCH.run, LAUNCH.workdir
    experiment.validate()
    if experiment.mesh:
        count = math.prod(parse(experiment.mesh).values())
        jax.config.update("jax_num_cpu_devices", count)
    found = memory_report.rows(experiment, WAYS.value)
    memory_report.write(found, folder / "memory.json")
    text = memory_report.text(found)
    (folder / "memory.md").write_text(text + "\n")
    sys.stdout.write(f"\n{text}\n")


if __name__ == "__main__":
    flags.run(main)
