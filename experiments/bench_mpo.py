"""Times a product with an MPO: rebuilding the kernel, or core after core.

Writes bench_mpo.json into --workdir: for MiniLM's 384 x 1536 at several bonds, both
ways against the dense product, on one core, and "auto" against the quicker one. A ratio
above its bound ends the program with an error.

Example: python -m experiments.bench_mpo --workdir=runs/bench --rounds=30
"""

import functools
import os
import pathlib

from absl import flags as absl_flags

from splitjax.bench import mpo
from splitjax.train import flags, timing

WORKDIR = absl_flags.DEFINE_string("workdir", "runs/bench_mpo", "where to write")
ROUNDS = absl_flags.DEFINE_integer("rounds", 20, "how often each is timed")
BONDS = absl_flags.DEFINE_list("bonds", [*map(str, mpo.BONDS)], "0: full ones")
TOKENS = absl_flags.DEFINE_list("tokens", [*map(str, mpo.TOKENS)], "rising")
CLOCK = absl_flags.DEFINE_enum("clock", "wall", list(timing.CLOCKS), "what is counted")


def main(_: list[str]) -> None:
    """Measures every bond in turn."""
    # XLA counts the cores when it starts.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    clock = timing.CLOCKS[CLOCK.value]
    timed = functools.partial(
        timing.interleaved, rounds=ROUNDS.value, before=1, clock=clock
    )
    rows: list[dict] = []
    for bond in map(int, BONDS.value):
        factor = mpo.made(mpo.DIMS, bond)
        name = f"bond {bond}" if bond else "full bonds"
        rows += mpo.measure(factor, [*map(int, TOKENS.value)], timed, name=name)
    path = pathlib.Path(WORKDIR.value, "bench_mpo.json")
    timing.finish(rows, path)


if __name__ == "__main__":
    flags.run(main)
