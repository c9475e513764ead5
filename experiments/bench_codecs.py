"""What codecs cost, as multiples of a copy in memory that the same run measures.

Writes bench_codecs.json into --workdir: for each codec encode and decode of (32, 128,
768) float32 (12.6 MB) on one core, compiled and warm, against np.copyto of the same
array, the bytes that cross and the error; then ours beside other libraries' figures at
their sizes. A ratio above its bound ends the program with an error. On a machine that
others use, too, --clock=cpu counts the time of this process alone.

Example: python -m experiments.bench_codecs --workdir=runs/bench --only='top_k|c3'
"""

import functools
import os
import pathlib
import re

import jax
from absl import flags as absl_flags

from splitjax.bench import codecs
from splitjax.train import flags, timing

WORKDIR = absl_flags.DEFINE_string("workdir", "runs/bench_codecs", "where to write")
ROUNDS = absl_flags.DEFINE_integer("rounds", 30, "how often each is timed")
ONLY = absl_flags.DEFINE_string("only", "", "codecs whose name has this expression")
SHAPE = absl_flags.DEFINE_list("shape", [*map(str, codecs.SHAPE)], "of the array")
CLOCK = absl_flags.DEFINE_enum("clock", "wall", list(timing.CLOCKS), "what is counted")
PEERS = absl_flags.DEFINE_bool("peers", True, "also measure at the peers' sizes")


def main(_: list[str]) -> None:
    """Measures every codec in turn."""
    # XLA counts the cores when it starts.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    x = codecs.activations(tuple(map(int, SHAPE.value)))
    timed = functools.partial(
        timing.interleaved,
        rounds=ROUNDS.value,
        before=2,
        clock=timing.CLOCKS[CLOCK.value],
    )
    made: list[dict] = []
    for case in codecs.cases():
        if re.search(ONLY.value, case.codec.name):
            made += codecs.measure(case, x, timed)
    if PEERS.value:
        for peer in codecs.peers():
            if re.search(ONLY.value, peer.codec.name):
                made += codecs.against(peer, timed)
        if re.search(ONLY.value, "c3"):
            made += codecs.against_direct(timed)
    if not made:
        raise SystemExit(f"--only={ONLY.value}: no codec has this in its name")
    path = pathlib.Path(WORKDIR.value, "bench_codecs.json")
    timing.finish(made, path)


if __name__ == "__main__":
    flags.run(main)
