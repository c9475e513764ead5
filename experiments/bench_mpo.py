"""Times a product with an MPO: rebuilding the kernel, or core after core.

Writes bench_mpo.json into --workdir: for MiniLM's 384 x 1536 at several bonds, both
ways against the dense product, on one core, and "auto" against the quicker one. A ratio
above its bound ends the program with an error.

Example: python -m experiments.bench_mpo --workdir=runs/bench --rounds=30
"""

import functools
import os
import pathlib
import sys
import time

from absl import flags as absl_flags

from splitjax.train import bench, bench_mpo, flags

WORKDIR = absl_flags.DEFINE_string("workdir", "runs/bench_mpo", "where to write")
ROUNDS = absl_flags.DEFINE_integer("rounds", 20, "how often each is timed")
BONDS = absl_flags.DEFINE_list("bonds", [*map(str, bench_mpo.BONDS)], "0: full ones")
TOKENS = absl_flags.DEFINE_list("tokens", [*map(str, bench_mpo.TOKENS)], "rising")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK = absl_flags.DEFINE_enum("clock", "wall", list(CLOCKS), "what is counted")


def main(_: list[str]) -> None:
    """Measures every bond in turn."""
    # XLA counts the cores when it starts.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    clock = CLOCKS[CLOCK.value]
    timed = functools.partial(
        bench.interleaved, rounds=ROUNDS.value, before=1, clock=clock
    )
    rows: list[dict] = []
    for bond in map(int, BONDS.value):
        factor = bench_mpo.made(bench_mpo.DIMS, bond)
        name = f"bond {bond}" if bond else "full bonds"
        rows += bench_mpo.measure(factor, [*map(int, TOKENS.value)], timed, name=name)
    path = pathlib.Path(WORKDIR.value, "bench_mpo.json")
    sys.stdout.write(f"{bench.write(rows, path)}\n")
    over = [row for row in rows if row["bound"] and row["ratio"] > row["bound"]]
    if over:
        lines = [f"{row['name']}: {row['ratio']:.2f}" for row in over]
        raise SystemExit("above their bounds:\n" + "\n".join(lines))


if __name__ == "__main__":
    flags.run(main)
