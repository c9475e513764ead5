"""Options of a compressed fine-tuned model: which one, and what is trained on then."""

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
from splitjax.train.compress_methods import METHODS, rank_of
from splitjax.train.compression import Compression
from splitjax.train.experiment import check, option
from splitjax.train.finetune import Finetune
from splitjax.train.task import task


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
    tx: Callable[["Tuned", Any, int], optax.GradientTransformation]
    end: Callable[[Tree, Callable[[Tree], Tree]], Tree]
    forms: tuple[str, ...] = ("product",)
    weighted: bool = False


def _lrpet(experiment: "Tuned", tx: Any, steps: int) -> optax.GradientTransformation:
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
    sums = {path: leaf.sum(-1) for path, leaf in flat(weights).items()}
    means = {path: one.mean(-1, keepdims=True) for path, one in sums.items()}
    # A matrix that no gradient reached is projected plainly.
    return {
        path: jnp.where(mean > 0, jnp.sqrt(one / jnp.where(mean > 0, mean, 1)), 1)
        for (path, one), mean in zip(sums.items(), means.values(), strict=True)
    }


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
class Compress(Compression, Finetune):
    """A fine-tuned model, compressed by several methods to several sizes."""

    mode: str = option("unsplit", "'unsplit': a model is compressed as a whole")
    trained: str = option("", "the folder of a finished un-split run; '': train one")
    fisher_examples: int = option(256, "training examples that the Fisher is of")
    score_on: tuple[str, ...] = option((), "data splits to score on; (): all")
    tune: str = option(
        "",
        f"train on afterwards: '' or one of {tuple(TUNES)}; the last one projects in "
        "the metric of the Fisher's rows",
    )
    tune_epochs: int = option(1, "passes over the training data then")
    tune_steps: int = option(0, "steps at most then; 0: as many as the epochs have")
    tune_rate: float = option(2e-5, "the peak of the learning rate then")
    tune_every: int = option(30, "steps between projections of 'lrpet'")

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        check(self.mode, "mode", ("unsplit",))
        self.check_points("fisher_examples", "tune_epochs", "tune_every")
        for name in self.score_on:
            check(name, "score_on", task(self.task, 0).splits)
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

    def dense(self) -> Finetune:
        """The run whose model is compressed."""
        return Finetune(**_fields_of(self, Finetune))

    def tuned(
        self, factor: str, share: float, params: Tree, weights: Tree | None = None
    ) -> "Tuned":
        """The run that trains on from compressed parameters, by stage name."""
        given: dict[str, Any] = _fields_of(self, Finetune)
        given |= {name: getattr(self, name) for name in DECIDES}
        given |= {"epochs": self.tune_epochs, "learning_rate": self.tune_rate}
        given |= {"steps": self.tune_steps}
        given |= {"unsplit_rate": 0.0, "factor": factor, "share": share}
        made = Tuned(**given)
        tune = TUNES[self.tune]
        object.__setattr__(made, "begin", tune.begin(params))
        if tune.weighted:
            object.__setattr__(made, "scale", row_scale(weights))
        return made


# What else decides a tuned run: where it starts, and how it goes on.
DECIDES = ("where", "fisher_examples", "solver", "iterations", "tune", "tune_every")


@dataclasses.dataclass
class Tuned(Finetune):
    """A run that starts from compressed parameters; made by `Compress.tuned`."""

    factor: str = option("", "what they were compressed by")
    share: float = option(1.0, "to how much")
    where: str = option("", "see `Compress`, as the rest")
    fisher_examples: int = option(0, "")
    solver: str = option("", "")
    iterations: int = option(0, "")
    tune: str = option("factors", "")
    tune_every: int = option(0, "")

    # Of an instance: parameters by stage name, and what their rows count for.
    begin: ClassVar[Any] = None
    scale: ClassVar[Mapping[str, jax.Array] | None] = None

    def _given(self, config: Any, pairs: bool, key: jax.Array) -> Tree:
        """Where the run starts: all parameters, by stage name."""
        del config, pairs, key
        return self.begin

    def tx(self, steps: int) -> optax.GradientTransformation:
        """The optimizer, for a run of so many steps."""
        return TUNES[self.tune].tx(self, super().tx(steps), steps)


def _fields_of(experiment: Any, kind: type) -> dict[str, Any]:
    return {f.name: getattr(experiment, f.name) for f in dataclasses.fields(kind)}
