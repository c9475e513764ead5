"""Optimizers beside each other: each tuned alike, then by steps and by seconds.

Example: python -m experiments.optimizers --config=configs/dpkfac_cnn.py \
  --config.hold_out=5000 --arm='optimizer=sgd learning_rate=0.03,0.1,0.3' \
  --arm='optimizer=kfac learning_rate=0.03,0.1,0.3'

Without --arm they are those that the config file proposes (its ARMS). Each arm's points
are scored on what the config holds out, or on the first split of a task that has none;
the best runs over all seeds. A step is timed for all arms in turn. Started again, the
same command keeps the runs that are done.
"""

import sys

from absl import flags as absl_flags

from splitjax.studies.optimizers import race, report
from splitjax.train import flags, timing

LAUNCH = flags.define("configs/dpkfac_resnet.py")
ARM = absl_flags.DEFINE_multi_string(
    "arm", None, "FIELD=VALUE,VALUE ...: what an arm may choose from; repeat it"
)
WINDOW = absl_flags.DEFINE_integer(
    "window",
    0,
    "steps that are timed together; 0: from one inversion of K-FAC's to the next",
    lower_bound=0,
)
ROUNDS = absl_flags.DEFINE_integer(
    "rounds", 5, "how often each is timed", lower_bound=1
)
CLOCK = absl_flags.DEFINE_enum("clock", "wall", list(timing.CLOCKS), "what is counted")


def main(_: list[str]) -> None:
    """Tunes, runs, times."""
    experiment, workdir = LAUNCH.run, LAUNCH.workdir
    arms = race.arms(ARM.value or flags.proposed(LAUNCH.path, "ARMS"), experiment)
    workdir.mkdir(parents=True, exist_ok=True)
    rows = race.race(experiment, arms, workdir)
    chosen = {row["name"]: row["chosen"] for row in rows}
    times = race.seconds_of(
        experiment,
        chosen,
        window=WINDOW.value or race.window_of(experiment, chosen),
        rounds=ROUNDS.value,
        clock=timing.CLOCKS[CLOCK.value],
    )
    made = report.compared(rows, times)
    shown = report.write(made, workdir, experiment.task)
    sys.stdout.write(f"\n{shown}\n\nSee {workdir / 'optimizers.png'}\n")


if __name__ == "__main__":
    flags.run(main)
