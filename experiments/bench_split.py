"""What a cut costs: steps, start and memory, as ratios that one run measures.

Writes bench_split.json into --workdir, with one row for each number. The parts, which
--only chooses from:

* one_process: the split step against the un-split jitted step, both halves here.
* loopback: the same with edge and cloud as two processes over TLS; also with one core
  for each process, and one for the un-split step.
* slow: over slow links with one core for each process, against the ideal makespan.
* start: from nothing to the first step, and the memory of an edge.
"""

import dataclasses
import json
import os
import pathlib
import signal
import sys
import tempfile

import jax
from absl import flags as absl_flags

from splitjax.bench.links import loopback, slow
from splitjax.bench.processes import Bench, do, pin
from splitjax.bench.start import start
from splitjax.bench.steps import one_process
from splitjax.core.tree import nearest
from splitjax.runtime.certificates import make_certificates
from splitjax.train import flags, processes, timing

LAUNCH = flags.define("configs/sft_stsb.py")
PARTS = {"one_process": one_process, "loopback": loopback, "slow": slow, "start": start}
# Parts that are also, or only, measured with one core for each process.
PINNED, PINNED_ONLY = ("loopback", "slow"), ("slow",)
ROUNDS = absl_flags.DEFINE_integer("rounds", 10, "how often each step is timed")
SLOW_ROUNDS = absl_flags.DEFINE_integer(
    "slow_rounds", 6, "the same, over slow links", lower_bound=1
)
LAYERS = absl_flags.DEFINE_list("layers", ["0", "2", "4"], "cuts, over slow links")
ONLY = absl_flags.DEFINE_list("only", list(PARTS), "the parts to measure")
CORES = absl_flags.DEFINE_list(
    "cores", [], "one part alone, with these cores for edge and cloud: 0,1"
)
TASK = absl_flags.DEFINE_string("task", "", "JSON; for processes that this one starts")


def on_cores(part: str, command: list[str], workdir: pathlib.Path) -> list[dict]:
    """The rows of a part in a process that has one core, and its clouds another."""
    cores = sorted(os.sched_getaffinity(0))
    more = [f"--cores={cores[0]},{cores[-1]}", f"--only={part}", f"--workdir={workdir}"]
    more += [f"--rounds={ROUNDS.value}", f"--slow_rounds={SLOW_ROUNDS.value}"]
    more += [f"--layers={','.join(LAYERS.value)}"]
    log = workdir.with_suffix(".log")
    with processes.process([*command, *more], log) as child:
        if child.wait():
            raise RuntimeError(f"{part} failed:\n{log.read_text(errors='replace')}")
    return json.loads((workdir / "bench_split.json").read_text())["rows"]


def main(_: list[str]) -> None:
    """Measures every part in turn."""
    pin(CORES.value)
    # Every process compiles the same small programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if TASK.value:
        return do(LAUNCH.experiment, TASK.value)
    if unknown := [part for part in ONLY.value if part not in PARTS]:
        raise SystemExit(f"--only={unknown[0]}: {nearest(unknown[0], tuple(PARTS))}")
    # The processes that this one starts end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    command = ["-m", "experiments.bench_split"]
    command += flags.config_arguments()
    made: list[dict] = []
    with tempfile.TemporaryDirectory() as room:
        make_certificates(pathlib.Path(room, "certificates"))
        b = Bench(
            LAUNCH.experiment,
            tuple(command),
            pathlib.Path(room),
            rounds=ROUNDS.value,
            layers=tuple(map(int, LAYERS.value)),
            cores=tuple(CORES.value),
        )
        for part in ONLY.value:
            if CORES.value or part not in PINNED_ONLY:
                rounds = SLOW_ROUNDS.value if part == "slow" else ROUNDS.value
                made += PARTS[part](dataclasses.replace(b, rounds=rounds))
            if not CORES.value and part in PINNED:
                made += on_cores(part, command, pathlib.Path(room, part))
    table = timing.write(made, LAUNCH.workdir / "bench_split.json")
    sys.stdout.write(f"{table}\n")


if __name__ == "__main__":
    flags.run(main)
