"""Training at a low rank beside truncation after it: what each costs and scores."""

import dataclasses
import itertools
import pathlib
import re
from typing import Any

import jax

from splitjax.core.factor import materialize
from splitjax.core.tree import Tree, flat, spec_of
from splitjax.data.batches import model_inputs
from splitjax.factors.truncated import truncate
from splitjax.metrics.macs import macs
from splitjax.optim.lrpet import project_params
from splitjax.optim.norms import STATISTICS, recalibrate
from splitjax.train.loop import train
from splitjax.train.low_rank import LowRank
from splitjax.train.runs import Run, evaluate, open_trained


def compare(
    experiment: LowRank, seed: int, folder: pathlib.Path
) -> list[dict[str, Any]]:
    """Trains plainly and at a low rank, and scores what comes of both.

    Args:
      experiment: with a `low_rank`.
      seed: of both runs.
      folder: gets the runs, `plain_seed_S` and `low_rank_seed_S`.

    Returns:
      A row each for the plain model, for that truncated after training, for that
      projected after training (with the norms and the energy of the options), and for
      the one trained at a low rank, the last three as products, and each of them once
      more with the statistics of its norms measured again: `name`, `seed`, parameters,
      macs (of one picture), and the scores by data split.

    Raises:
      ValueError: for an experiment that trains at full rank, or in two processes.
    """
    if not experiment.low_rank or experiment.mode == "processes":
        raise ValueError(
            f"low_rank={experiment.low_rank}, mode={experiment.mode!r}: the comparison "
            "needs a share above 0, and both halves here"
        )
    rows = []
    for name, share in (("plain", 0.0), ("low_rank", experiment.low_rank)):
        one = dataclasses.replace(experiment, low_rank=share)
        room = folder / f"{name}_seed_{seed}"
        train(one, seed, room)
        run = open_trained(one, seed, room)
        try:
            rows += _rows(experiment, run, name)
        finally:
            run.driver.close()
    return [{"seed": seed, **row} for row in rows]


def _rows(experiment: LowRank, run: Run, kind: str) -> list[dict[str, Any]]:
    merge = run.parts.algorithm.merge
    if merge is None:
        raise ValueError(
            "the algorithm of this run has no merge: its model is in parts"
        )
    whole, state = merge(run.state.edge, run.state.shared, run.state.slot)
    plan = experiment.plan(whole)
    projected = project_params(
        whole, plan, model_state=state, transfer=experiment.low_rank_energy
    )
    made = {
        "plain": {
            "plain": whole,
            "truncated after training": truncate(whole, plan),
            "projected after training": truncate(projected, plan),
        },
        "low_rank": {"trained at a low rank": truncate(whole, plan)},
    }[kind]
    [first, *_] = next(iter(run.parts.train.epoch(0, micro=experiment.micro)))
    one = {
        k: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype)
        for k, a in model_inputs(first).items()
    }

    model = run.parts.split.cut.model

    def forward(params, x):
        return model.apply(params, state, x, key=None, train=False)[0]

    again = experiment.low_rank_measured and any(
        re.fullmatch(STATISTICS, path) for path in flat(state)
    )
    rows = []
    for name, params in made.items():
        about = {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "macs": macs(forward, spec_of(params), one),
        }
        rows.append({"name": name, **about, **_scores(run, params, state)})
        if again and name != "plain":
            new = measured(run, params, state, experiment.low_rank_measured)
            name = f"{name}, norms measured again"
            rows.append({"name": name, **about, **_scores(run, params, new)})
    return rows


def _scores(run: Run, params: Tree, state: Tree) -> dict[str, float]:
    return evaluate(dataclasses.replace(run, state=with_weights(run, params, state)))


def measured(run: Run, params: Tree, state: Tree, count: int) -> Tree:
    """A model's state with the statistics of its norms measured again.

    Args:
      run: whose training data it is, of the first epoch's order.
      params: by stage name, as changed.
      state: by stage name.
      count: batches at most.
    """
    model, dense = run.parts.split.cut.model, materialize(params)

    @jax.jit
    def forward(params, state, x):
        return model.apply(params, state, x, key=jax.random.key(0), train=True)[1]

    epoch = itertools.islice(run.parts.train.epoch(0), count)
    inputs = ((model_inputs(batch), int(batch["n_valid"])) for [batch] in epoch)
    return recalibrate(lambda state, x: forward(dense, state, x), state, inputs)


def with_weights(run: Run, params: Tree, state: Tree) -> Any:
    """A run's state with other parameters and norms, given by stage name."""
    cut = run.parts.split.cut
    parts, states = cut.partition(params), cut.partition(state)
    edge, shared, slot = run.state.edge, run.state.shared, run.state.slot

    def held(entry):
        if not entry:
            return entry
        new = {"params": {i: parts[int(i)] for i in entry["params"]}}
        return {
            **entry,
            **new,
            **{f"state/{i}": states[int(i)] for i in entry["params"]},
        }

    return run.state._replace(edge=held(edge), shared=shared, slot=held(slot))
