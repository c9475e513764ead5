"""Edge and cloud as two processes: their steps over loopback and over slow links."""

import contextlib
import dataclasses
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from splitjax.bench.processes import Bench, Stopwatch, Ways
from splitjax.bench.steps import one_program, recipes
from splitjax.runtime.makespan import Work, makespan
from splitjax.runtime.meter import Meter
from splitjax.runtime.network import Network
from splitjax.train import timing
from splitjax.train.drivers import ToCloud
from splitjax.train.experiment import Experiment
from splitjax.train.stepper import stepper

LOOPBACK_BOUND, SLOW_BOUND = 1.15, 1.10
NETWORKS = ("10Mbit,20ms", "100Mbit,20ms")
MICRO = 4
SWEEPS = 3
# Seconds and parts of some steps, by how many micro-batches were in flight.
Steps = dict[int, list[tuple[float, list[Work]]]]
Row = dict[str, Any]


def loopback(b: Bench) -> list[Row]:
    """The step of edge and cloud over TLS on loopback, and both references of it.

    They are the un-split step, and the same split step as one jitted program: the
    squeezed block of a config costs less than the one that it stands for. The edge is
    this process, which does the references, too.
    """
    base = dataclasses.replace(b.base, micro=1, in_flight=1)
    cores = ", one core each" if b.cores else ""
    whole = f"un-split{', one core' if b.cores else ''}"
    steps: dict[str, Any] = {}
    against: dict[str, list[str]] = {}
    with contextlib.ExitStack() as stack:
        for name, experiment in recipes(base).items():
            if experiment.mode == "unsplit":
                steps[whole] = stepper(experiment, frames=False)[1]
                continue
            served = stack.enter_context(b.cloud(experiment))
            cloud = ToCloud(Ways(served.doors).dial)
            driver, step = stepper(experiment, cloud=cloud)
            stack.callback(driver.close)
            steps[f"{name}, two processes{cores}"] = step
            program = f"{name}, one program{cores.replace(' each', '')}"
            steps[program] = one_program(experiment)
            against[f"{name}, two processes{cores}"] = [whole, program]
        times = timing.interleaved(steps, rounds=b.rounds)
    rows = timing.rows({whole: times[whole]}, whole, {})
    for name, references in against.items():
        for reference in references:
            pair = {key: times[key] for key in (name, reference)}
            rows += timing.rows(pair, reference, {name: LOOPBACK_BOUND})[:1]
    return rows


def slow(b: Bench) -> list[Row]:
    """The step over slow links, against the ideal makespan of its measured parts.

    Whatever else a machine does for some minutes slows the steps of those minutes:
    every cut has its rounds in several sweeps over all of them, far apart.
    """
    found: dict[tuple[str, str], Steps] = {}
    for rounds in _sweeps(b.rounds):
        part = dataclasses.replace(b, rounds=rounds)
        for name, experiment in _cuts(b):
            for network, steps in over_networks(part, experiment).items():
                pooled = found.setdefault((name, network), {1: [], MICRO: []})
                for in_flight, new in steps.items():
                    pooled[in_flight] += new
    rows = []
    for (name, network), steps in found.items():
        rows += _rows(f"{name}, {network}", network, steps)
    return rows


def _sweeps(rounds: int) -> list[int]:
    """The rounds of each sweep: as even as can be, and none without one."""
    return [n for late in range(SWEEPS) if (n := (rounds + late) // SWEEPS)]


def _cuts(b: Bench) -> Iterator[tuple[str, Experiment]]:
    for layer in b.layers:
        # An exact norm is one more exchange, which `makespan` does not know.
        more: Any = {"layer": layer, "micro": MICRO, "exact_norm": False}
        for name, experiment in recipes(dataclasses.replace(b.base, **more)).items():
            if experiment.mode != "unsplit":
                yield f"cut {layer}, {name}", experiment


def over_networks(b: Bench, experiment: Experiment) -> dict[str, Steps]:
    """The timed steps of one run that goes from network to network."""
    calls: list[tuple] = []
    meter, by_network = Meter(), {}
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(b.cloud(experiment, ("", *NETWORKS)))
        stack.enter_context(Stopwatch(lambda *call: calls.append(call)))
        ways = Ways(served.doors)
        driver, step = stepper(experiment, cloud=ToCloud(ways.dial), meter=meter)
        stack.callback(driver.close)
        jax.block_until_ready(step(1))
        for network in NETWORKS:
            ways.move(network)
            found: Steps = {1: [], MICRO: []}
            jax.block_until_ready(step(MICRO))
            for _ in range(b.rounds):
                for in_flight, steps in found.items():
                    calls.clear()
                    served.times()
                    sent = _sent(meter)
                    start = time.monotonic()
                    jax.block_until_ready(step(in_flight))
                    seconds = time.monotonic() - start
                    new = {key: n - sent[key] for key, n in _sent(meter).items()}
                    parts = _works([*calls, *served.times()], new)
                    steps.append((seconds, parts))
            by_network[network] = found
    return by_network


def _sent(meter: Meter) -> dict[str, int]:
    return {
        f"{kind} {way}": meter.totals(kind=kind)[f"bytes_{way}"]
        for kind in ("train", "control")
        for way in ("up", "down")
    }


def _works(calls: Sequence[tuple], sent: dict[str, int]) -> list[Work]:
    """What each tick of a step cost, from its calls in order and its bytes."""
    seconds: dict[str, list[float]] = {"edge": [], "cloud": [], "last": []}
    for name, begin, end in calls:
        if name in seconds:
            seconds[name].append(end - begin)
    backward = seconds["last"] or [0.0] * MICRO
    ticks = list(zip(seconds["edge"], seconds["cloud"], backward, strict=True))
    up, down = (sent[f"train {way}"] // len(ticks) for way in ("up", "down"))
    works = [Work(*tick, up_bytes=up, down_bytes=down) for tick in ticks]
    # The step is acknowledged at its end.
    works[-1] = dataclasses.replace(works[-1], down_bytes=down + sent["control down"])
    return works


def _median(steps: Sequence[list[Work]]) -> list[Work]:
    def one(ticks):
        columns = zip(*map(dataclasses.astuple, ticks), strict=True)
        return Work(*map(statistics.median, columns))

    return [one(ticks) for ticks in zip(*steps, strict=True)]


def _rows(name: str, network: str, found: Steps) -> list[Row]:
    link, rows = Network.parse(network), []
    # Of the synchronous steps, in which each party computes undisturbed.
    work = _median([parts for _, parts in found[1]])
    ideal = makespan(work, link, in_flight=MICRO)
    for in_flight, steps in found.items():
        value = statistics.median(seconds for seconds, _ in steps)
        rows.append(
            {
                "name": f"{name}, {in_flight} in flight",
                "value": value,
                "unit": "s",
                "reference": f"ideal makespan, {MICRO} in flight",
                "ratio": value / ideal,
                "bound": SLOW_BOUND if in_flight == MICRO else None,
            }
        )
    # Both parties slow each other down where they share a memory. What is left over
    # the ideal of the same steps is the runtime's own.
    own = makespan(_median([parts for _, parts in found[MICRO]]), link, in_flight=MICRO)
    last = rows[-1]
    rows.append(
        {
            **last,
            "reference": f"that of its own compute, {MICRO} in flight",
            "ratio": last["value"] / own,
            "bound": None,
        }
    )
    logging.info("%s: %.3f, own %.3f", name, last["ratio"], rows[-1]["ratio"])
    return [rows[1], rows[2], rows[0]]
