"""Training on after a compression: in which form, and what a compressed run is then."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from splitjax.core.factor import materialize
from splitjax.core.tree import Tree, flat
from splitjax.optim.lrpet import lrpet
from splitjax.optim.ranks import at_rank
from splitjax.studies.compress.compression import Compression
from splitjax.studies.compress.methods import METHODS, rank_of
from splitjax.train.cut_experiment import CutExperiment
from splitjax.train.experiment import check, option


@dataclasses.dataclass(frozen=True)
class Tune:
    """A way to train on after a compression.

    Attributes:
      begin: from the compressed parameters to those that are trained.
      tx: `(experiment, transformation, steps) -> transformation` of the updates.
      end: `(params, factorize) -> params`, to the compressed form again; `factorize`
        puts products of the same ranks where the compression had its factors.
      forms: of `Method.form`, what it can begin from.
      weighted: whether it reads the Fisher.
    """

    begin: Callable[[Tree], Tree]
    tx: Callable[["FromFactors", Any, int], optax.GradientTransformation]
    end: Callable[[Tree, Callable[[Tree], Tree]], Tree]
    forms: tuple[str, ...] = ("product",)
    weighted: bool = False


def _lrpet(
    experiment: "FromFactors", tx: Any, steps: int
) -> optax.GradientTransformation:
    """Dense kernels, brought back to their ranks now and then, and at the end."""
    # Of an un-split run: all stages are in segment 0.
    plan = at_rank(f"0/(?:{experiment.where})", rank_of(experiment.share))
    scale = {f"0/{path}": a for path, a in (experiment.scale or {}).items()}
    every = experiment.tune_every
    return optax.chain(tx, lrpet(plan, every=every, last=steps, scale_in=scale))


def row_scale(weights: Tree) -> dict[str, jax.Array]:
    """What a Fisher's row sums make each row of a kernel count for, by path.

    The root of the sums, of a mean square of 1 in each matrix: the metric of FWSVD.

    Args:
      weights: a Fisher; None where nothing was measured.

    Example:
      >>> scale = row_scale({"k": jnp.array([[0.0, 2.0], [9.0, 9.0]]), "b": None})
      >>> [round(one, 4) for one in scale["k"].tolist()]
      [0.4472, 1.3416]
    """

    def one(leaf):
        sums = leaf.sum(-1)
        mean = sums.mean(-1, keepdims=True)
        # A matrix that no gradient reached is projected plainly.
        return jnp.where(mean > 0, jnp.sqrt(sums / jnp.where(mean > 0, mean, 1)), 1)

    return {path: one(leaf) for path, leaf in flat(weights).items()}


_DENSE: dict[str, Any] = {
    "begin": materialize,
    "tx": _lrpet,
    "end": lambda params, factorize: factorize(params),
}
TUNES = {
    "factors": Tune(
        begin=lambda params: params,
        tx=lambda _, tx, __: tx,
        end=lambda params, _: params,
        forms=("product", "cores"),
    ),
    "lrpet": Tune(**_DENSE),
    "lrpet_rows": Tune(**_DENSE, weighted=True),
}


@dataclasses.dataclass
class Tuning(Compression):
    """Options of a compression whose models are trained on, whatever they are."""

    tune: str = option(
        "",
        f"train on afterwards: '' or one of {tuple(TUNES)}; the last one projects in "
        "the metric of the Fisher's rows",
    )
    tune_epochs: int = option(1, "passes over the training data then")
    tune_steps: int = option(0, "steps at most then; 0: as many as the epochs have")
    tune_rate: float = option(2e-5, "the peak of the learning rate then")
    tune_every: int = option(30, "steps between projections of 'lrpet'")

    def check_points(self, *counts: str) -> None:
        """The same for these, and for a `tune` that there is not, or not after them."""
        super().check_points(*counts, "tune_epochs", "tune_every")
        if not self.tune:
            return
        check(self.tune, "tune", tuple(TUNES))
        forms = TUNES[self.tune].forms
        for name in self.factors:
            if METHODS[name].form not in forms:
                raise ValueError(
                    f"tune={self.tune!r} after factors={name!r}: it trains what is "
                    f"{' or '.join(forms)}, and that makes {METHODS[name].form}. Codes "
                    "come last: take codes=0.5, say, beside a product"
                )

    def tuned(
        self, factor: str, share: float, params: Tree, weights: Tree | None = None
    ) -> "FromFactors":
        """The run that trains on from compressed parameters, by stage name."""
        raise NotImplementedError(f"{type(self).__name__} defines no tuned()")

    def run_from(
        self,
        kind: type["FromFactors"],
        given: dict[str, Any],
        *,
        factor: str,
        share: float,
        params: Tree,
        weights: Tree | None,
    ) -> "FromFactors":
        """Such a run of a kind: `given` are its other options."""
        own = {name: getattr(self, name) for name in DECIDES}
        own |= {"epochs": self.tune_epochs, "learning_rate": self.tune_rate}
        own |= {"steps": self.tune_steps, "factor": factor, "share": share}
        made, tune = kind(**given | own), TUNES[self.tune]
        object.__setattr__(made, "begin", tune.begin(params))
        if tune.weighted:
            object.__setattr__(made, "scale", row_scale(weights))
        return made


# What else decides a tuned run: where it starts, and how it goes on.
DECIDES = ("where", "solver", "iterations", "tune", "tune_every")


@dataclasses.dataclass
class FromFactors(CutExperiment):
    """An un-split run that starts from compressed parameters; see `Tuning.tuned`.

    A kind of run joins it by giving `begin` as its pretrained parameters.
    """

    factor: str = option("", "what they were compressed by")
    share: float = option(1.0, "to how much")
    fisher: str = option("", "what the Fisher was measured on")
    where: str = option("", "see `Compression`, as the rest")
    solver: str = option("", "")
    iterations: int = option(0, "")
    tune: str = option("factors", "")
    tune_every: int = option(0, "")

    # Of an instance: parameters by stage name, and what their rows count for.
    begin: ClassVar[Any] = None
    scale: ClassVar[Mapping[str, jax.Array] | None] = None

    def tx(self, steps: int, seed: int = 0) -> optax.GradientTransformation:
        """The optimizer, for a run of so many steps."""
        return TUNES[self.tune].tx(self, super().tx(steps, seed), steps)
