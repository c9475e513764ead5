"""Plans a model's pipeline for some devices, and measures what the plan foretold.

Prints the stages with their times, foretold from counted operations and measured one
by one, beside a cut into equal numbers of blocks. Writes plan.md, plan.json and a
picture of the schedule, plan.png, into --workdir. On a CPU the devices are virtual.

Example: python -m experiments.plan --config.model=configs/sft_stsb.py \
  --config.devices=2 --config.mesh=pipe=2
"""

import sys

import jax

from splitjax.studies.plan import report
from splitjax.studies.plan.plan import plan_and_measure
from splitjax.train import flags

LAUNCH = flags.define("configs/merak_smollm2.py")


def main(_: list[str]) -> None:
    """Makes and prints the plan."""
    options, folder = LAUNCH.experiment, LAUNCH.workdir
    options.validate()
    jax.config.update("jax_num_cpu_devices", options.devices)
    found = plan_and_measure(options)
    report.write(found, folder / "plan.json")
    text = report.text(found)
    (folder / "plan.md").write_text(text + "\n")
    report.plot(found, folder / "plan.png", title=options.model)
    sys.stdout.write(f"\n{text}\n\nSee {folder / 'plan.png'}\n")


if __name__ == "__main__":
    flags.run(main)
