"""Convolutions that are trained at a low rank (LRPET), and what that is worth."""

import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import optax

from splitjax.core.matrix import Plan
from splitjax.core.tree import Tree, flat, path_name, spec_of
from splitjax.data.batches import model_inputs
from splitjax.factors.truncated import truncate
from splitjax.metrics.macs import macs
from splitjax.optim.lrpet import lrpet, project_params
from splitjax.optim.ranks import at_ratio
from splitjax.train.cut_experiment import CutExperiment
from splitjax.train.experiment import option
from splitjax.train.loop import Run, evaluate, open_trained, train

CONVS = ".*conv.*/kernel"
EPS = 1e-5  # of the batch norms of our models


@dataclasses.dataclass
class LowRank(CutExperiment):
    """Options of training at a low rank, for models of convolutions."""

    low_rank: float = option(
        0.0, "the share of each convolution's rank to train without (LRPET); 0: none"
    )
    low_rank_every: int = option(
        0, "steps from one projection to the next; 0: one at the end of each epoch"
    )
    low_rank_floor: int = option(1, "the least rank")
    low_rank_energy: bool = option(
        True, "what is kept gets the energy of what is cut away"
    )
    low_rank_norm: bool = option(
        True, "the batch norm behind a convolution decides what is kept of it"
    )

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        if not 0 <= self.low_rank < 1:
            raise ValueError(
                f"low_rank={self.low_rank}: a share of the rank, 0 or more, below 1"
            )
        if self.low_rank_every < 0 or self.low_rank_floor < 1:
            raise ValueError(
                f"low_rank_every={self.low_rank_every} must be 0 or more, and "
                f"low_rank_floor={self.low_rank_floor} 1 or more"
            )

    def norm_eps(self) -> float:
        """Of the batch norms."""
        return EPS

    def plan(self, params: Tree) -> Plan:
        """Which leaf of the model gets which rank; params by stage name, or specs."""
        names = flat(params)
        # One of gray pictures has no rank to give away.
        convs = [n for n in names if re.fullmatch(CONVS, n) and names[n].shape[-2] > 1]
        if not convs:
            raise ValueError(
                f"low_rank={self.low_rank} is for convolutions, and this model has none"
            )

        def norm(path):
            layer = path.removesuffix("/kernel")
            stage, _, name = layer.rpartition("/")
            behind = f"{stage}/{name.replace('conv', 'norm')}"
            known = self.low_rank_norm and f"{behind}/scale" in names
            return behind if known else ""

        return at_ratio(
            "|".join(map(re.escape, convs)),
            self.low_rank,
            layout="conv",
            floor=self.low_rank_floor,
            norm=norm,
            eps=self.norm_eps(),
        )(params)

    def constrained(
        self, tx: optax.GradientTransformation, params: Tree, steps: int, per_epoch: int
    ) -> optax.GradientTransformation:
        """The optimizer, and after it the projection."""
        if not self.low_rank:
            return tx
        return optax.chain(
            tx,
            lrpet(
                by_segment(self.plan(params)),
                every=self.low_rank_every or per_epoch,
                last=steps,
                transfer=self.low_rank_energy,
            ),
        )


def by_segment(plan: Plan) -> Callable[[Tree], Plan]:
    """A plan by stage name for what one party holds: by segment, then by stage name.

    Example:
      >>> import jax.numpy as jnp
      >>> from splitjax.core.matrix import Rule
      >>> plan = {"stem/conv/kernel": Rule(2, norm="stem/norm"), "other": Rule(1)}
      >>> params = {"1": {"stem": {"conv": {"kernel": jnp.ones((4, 4))}}}}
      >>> [(path, rule.norm) for path, rule in by_segment(plan)(params).items()]
      [('1/stem/conv/kernel', '1/stem/norm')]
    """

    def select(params: Tree) -> Plan:
        mine = {}
        for path, _ in jax.tree_util.tree_leaves_with_path(params):
            segment, _, name = path_name(path).partition("/")
            if name in plan:
                rule = plan[name]
                norm = rule.norm and f"{segment}/{rule.norm}"
                mine[f"{segment}/{name}"] = dataclasses.replace(rule, norm=norm)
        return mine

    return select


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
      the one trained at a low rank, the last three as products: `name`, `seed`,
      parameters, macs (of one picture), and the scores by data split.

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

    def forward(params, x):
        for segment, p, s in zip(
            run.parts.split.cut.segments,
            run.parts.split.cut.partition(params),
            run.parts.split.cut.partition(state),
            strict=True,
        ):
            x = segment.apply(p, s, x, key=None, train=False)[0]
        return x

    return [
        {
            "name": name,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "macs": macs(forward, spec_of(params), one),
            **evaluate(dataclasses.replace(run, state=with_params(run, params))),
        }
        for name, params in made.items()
    ]


def with_params(run: Run, params: Tree) -> Any:
    """A run's state with other parameters, given by stage name."""
    parts = run.parts.split.cut.partition(params)
    edge, shared, slot = run.state.edge, run.state.shared, run.state.slot

    def held(entry):
        if not entry:
            return entry
        return {**entry, "params": {i: parts[int(i)] for i in entry["params"]}}

    return run.state._replace(edge=held(edge), shared=shared, slot=held(slot))
