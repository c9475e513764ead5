"""Convolutions that are trained at a low rank (LRPET), and what that is worth."""

import dataclasses
import re
from collections.abc import Callable

import jax
import optax

from splitjax.core.matrix import Plan
from splitjax.core.tree import Tree, flat, path_name
from splitjax.optim.lrpet import lrpet
from splitjax.optim.ranks import at_ratio
from splitjax.train.cut_experiment import CutExperiment
from splitjax.train.experiment import option

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
    low_rank_measured: int = option(
        20,
        "batches of training that the comparison measures the norms' statistics on "
        "again, once the weights are of a low rank; 0: it does not",
    )

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        if not 0 <= self.low_rank < 1:
            raise ValueError(
                f"low_rank={self.low_rank}: a share of the rank, 0 or more, below 1"
            )
        if self.low_rank and self.precision != "float32":
            raise ValueError(
                f"low_rank={self.low_rank} beside precision={self.precision!r}: a "
                "matrix that is rounded has its full rank again; take 'float32'"
            )
        if min(self.low_rank_every, self.low_rank_measured) < 0:
            raise ValueError(
                f"low_rank_every={self.low_rank_every} and "
                f"low_rank_measured={self.low_rank_measured}: 0 or more"
            )
        if self.low_rank_floor < 1:
            raise ValueError(f"low_rank_floor={self.low_rank_floor}: 1 or more")

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
