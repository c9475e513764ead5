"""What a device of a cloud holds in a training step: predicted, and as compiled."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from splitjax.core.algorithm import At
from splitjax.core.codec import split_smooth
from splitjax.core.split import FORWARD
from splitjax.core.tree import Tree
from splitjax.data.batches import model_inputs
from splitjax.metrics.collectives import Collective, count_collectives
from splitjax.metrics.memory import NOT_COUNTED, Held, Memory, device_bytes, hold
from splitjax.metrics.memory import predict as foretold
from splitjax.parallel.apart import GRADIENTS, apart
from splitjax.parallel.mesh import make_cloud_mesh, parse
from splitjax.parallel.rules import layout, place_rows
from splitjax.runtime.local import Local
from splitjax.train.cut_experiment import CutExperiment
from splitjax.train.experiment import Parts, check
from splitjax.train.loop import tick_batch
from splitjax.train.report import markdown, versions
from splitjax.train.scaled import RECOMPUTE
from splitjax.train.serve import run_key

MEGA = 1e6


@dataclasses.dataclass(frozen=True)
class Row:
    """The memory of a device in one way to run an experiment's cloud.

    Attributes:
      zero: of the options.
      recompute: of the options.
      memory: as predicted.
      held: beside what the compiler reserved.
      edge: bytes that an edge keeps from its way there to its way back.
      sent: what the devices send each other in the program of `row`, as compiled.
    """

    zero: int
    recompute: str
    memory: Memory
    held: tuple[Held, Held]
    edge: int
    sent: tuple[Collective, ...] = ()


def rows(experiment: CutExperiment, recompute: Iterable[str]) -> list[Row]:
    """The memory of an experiment's cloud by stage of ZeRO, and by what is recomputed.

    Args:
      experiment: any; its own `zero` and `recompute` are left aside. Without an axis
        "data" on its mesh there are no stages of ZeRO.
      recompute: its values, in order.

    Raises:
      ValueError: for other values; and see `row`.
    """
    recompute = list(recompute)
    for text in recompute:
        check(text, "recompute", RECOMPUTE)
    experiment.validate()
    has_data = experiment.mesh and "data" in parse(experiment.mesh)
    stages = range(4 if has_data else 1)
    ways = [dict(zero=z, recompute=text) for text in recompute for z in stages]
    return [row(dataclasses.replace(experiment, **way)) for way in ways]


def row(experiment: CutExperiment, seed: int = 0) -> Row:
    """The memory of a device of an experiment's cloud, for its first micro-batch.

    It is that of the program that goes through the cloud's half and back, in the last
    micro-batch of a step. What is given back in the place of an argument counts once;
    what stays on the device unread (the optimizer's state, where `exact_norm` gives the
    step to the next program) counts as an argument.

    Args:
      experiment: cut once, with the labels at the cloud.
      seed: of the run.

    Raises:
      ValueError: for options that make no sense, or another cut.
    """
    experiment.validate()
    if experiment.mesh and parse(experiment.mesh).get("pipe", 1) > 1:
        raise ValueError(
            f"a report on mesh={experiment.mesh!r}: it counts no pipeline, which "
            "experiments.plan does; take a mesh without 'pipe'"
        )
    parts = experiment.parts(seed)
    if len(parts.split) != 2:
        raise ValueError(
            f"a report is of a cloud whose program goes there and back: cut once, with "
            f"label_side='cloud'; here are {len(parts.split)} segments (mode="
            f"{experiment.mode!r}, label_side={experiment.label_side!r})"
        )
    [first, *more] = next(iter(parts.train.epoch(0, micro=experiment.micro)))
    total = sum(int(one["n_valid"]) for one in (first, *more))
    algorithm = experiment.cloud_algorithm(parts)
    driver = Local(algorithm, run_key(seed), examples=parts.examples)
    run = driver.start(parts.params, parts.state, model_inputs(first))
    slot, edge = _specs(run.slot), _specs(run.edge)
    at = At(run_key(seed), *(np.int32(0),) * 3)
    batch = jax.tree.map(np.asarray, tick_batch(first, total))
    batch.pop("ids", None)
    hops = algorithm.hops(True)
    _, live, up = jax.eval_shape(hops[0].edge, edge, {}, batch, None, at)
    program = jax.jit(
        hops[0].cloud, donate_argnums=() if len(hops) > 1 else (1,), keep_unused=True
    )
    lowered = program.lower(_specs(run.shared), (slot,), ({},), (up,), (at,))
    memory = _predicted(experiment, parts, slot, up, at)
    kept = {name: held for name, held in live.items() if name.startswith("residuals")}
    compiled = lowered.compile()
    return Row(
        experiment.zero,
        experiment.recompute,
        memory,
        hold(memory, compiled),
        device_bytes(kept),
        tuple(count_collectives(compiled)),
    )


def _predicted(
    experiment: CutExperiment, parts: Parts, slot: Tree, up: Tree, at: At
) -> Memory:
    split, params, summed = parts.split, slot["params"], slot["params"]
    whole = None
    by_rows = _rows_of(experiment)
    if experiment.mesh:
        mesh = make_cloud_mesh(experiment.mesh)
        over, lines = layout(params, mesh)
        whole = jax.tree.map(_at, params, over)
        if experiment.zero >= GRADIENTS:
            over, _ = apart(params, over, lines, mesh.shape["data"])
        summed = jax.tree.map(_at, params, over)

    def arrive(message, slot):
        m, _ = split.inlet(0, FORWARD, message, slot[f"link/0/{FORWARD}"])
        smooth, _ = split_smooth(split.links[0].forward)
        return smooth.decode(m, slot["link/0/smooth"])[0]

    def loss(params, given):
        y, _, aux = split.cut.segments[1].apply(
            params["1"], given["state"], given["x"], key=at.tick_key(), train=True
        )
        return split.loss(y, given["target"])[0] + aux.get("loss", 0.0)

    x, ups = (by_rows(a) for a in (jax.eval_shape(arrive, up["m"], slot), up))
    given = {"x": x, "target": ups["target"], "state": slot["state/1"]}
    rest = {name: held for name, held in slot.items() if name != "params"}
    memory = foretold(loss, params, rest, given, gradients=summed, whole=whole)
    # What a codec makes of a message is there beside it.
    decoded = 0 if _same(x, ups["m"]) else device_bytes(x)
    return memory._replace(
        batch=device_bytes((ups, at)),
        kept=memory.kept + decoded,
        fullest=memory.fullest + decoded,
    )


def _rows_of(experiment: CutExperiment) -> Callable[[Tree], Tree]:
    """What a device has of arrays that lie by their rows over "data"; see `spread`."""
    if not experiment.mesh:
        return lambda tree: tree
    mesh = make_cloud_mesh(experiment.mesh)

    def part(leaf):
        over = place_rows(leaf, mesh)
        return _at(leaf, over) if over else leaf

    return lambda tree: jax.tree.map(part, tree)


def _specs(tree: Tree) -> Tree:
    return jax.tree.map(lambda a: _at(a, getattr(a, "sharding", None)), tree)


def _at(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _same(one: Tree, other: Tree) -> bool:
    first, second = jax.tree.leaves(one), jax.tree.leaves(other)
    return [(a.shape, a.dtype) for a in first] == [(a.shape, a.dtype) for a in second]


def text(found: Iterable[Row]) -> str:
    """Rows as a Markdown table in megabytes, and what it does not count.

    Example:
      >>> memory = Memory(*[4_000_000] * 8)
      >>> held = Held("arguments", 12_000_002, 12_000_002), Held("temporary", 10, 20)
      >>> text([Row(1, "none", memory, held, 0)]).splitlines()[2].split()[1:8:2]
      ['1', 'none', '4.00', '4.00']
    """
    head = ("ZeRO", "recompute", *Memory._fields)
    head += ("arguments", "as compiled", "temporary", "as compiled", "ratio")
    head += ("edge", "sent")
    cells = []
    for one in found:
        sizes = [*one.memory]
        for held in one.held:
            sizes += [held.predicted_bytes, held.measured_bytes]
        made = [f"{size / MEGA:.2f}" for size in sizes]
        ratio = one.held[1].predicted_bytes / max(one.held[1].measured_bytes, 1)
        sent = sum(each.sent_bytes for each in one.sent)
        last = (f"{ratio:.3f}", f"{one.edge / MEGA:.2f}", f"{sent / MEGA:.2f}")
        cells.append((str(one.zero), one.recompute, *made, *last))
    notes = [
        "",
        "MB of one device. `arguments` are there before the step (params, moments, "
        "batch), `temporary` comes with it (`fullest`: of gradients, kept and again "
        "what is there at once; `gathered`: parameters that lie apart); `edge`: what "
        "an edge keeps for its way back; `sent`: what a device sends to others on the "
        "way there and back (where `exact_norm` gives the step to the next program, "
        "what that sends is not in it).",
        *(f"not counted: {what}" for what in NOT_COUNTED),
    ]
    return "\n".join([markdown(head, cells), *notes])


def write(found: Iterable[Row], path: pathlib.Path) -> None:
    """Writes the rows in bytes to a JSON file."""
    made = [
        {
            "zero": one.zero,
            "recompute": one.recompute,
            "edge": one.edge,
            "sent": sum(each.sent_bytes for each in one.sent),
            **one.memory._asdict(),
            **{
                f"{held.name}_{kind}": getattr(held, f"{kind}_bytes")
                for held in one.held
                for kind in ("predicted", "measured")
            },
        }
        for one in found
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": made, **versions()}, indent=2) + "\n")
