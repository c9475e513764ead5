"""Options of a compression: which matrices, by what, to how much, and what then."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import optax

from splitjax.core.factor import materialize
from splitjax.core.tree import Tree
from splitjax.factors.product import rank_keeping, svd
from splitjax.factors.rescue import rescued
from splitjax.factors.weighted import entries, rows
from splitjax.optim.lrpet import lrpet
from splitjax.optim.ranks import at_rank
from splitjax.train.experiment import check, option
from splitjax.train.finetune import Finetune

Fit = Callable[[Any, Any], Any]
AT_LEAST_ONE = (
    *("fisher_examples", "fisher_chunk", "iterations", "tune_epochs", "tune_every"),
)


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to compress a matrix.

    Attributes:
      fit: `(experiment, share) -> fit`, which `core.factor.factorize` calls with a
        matrix and its Fisher (None where it is not `weighted`).
      weighted: whether it reads the Fisher.
    """

    fit: Callable[["Compress", float], Fit]
    weighted: bool = True


@dataclasses.dataclass(frozen=True)
class Tune:
    """A way to train on after a compression.

    Attributes:
      begin: from the compressed parameters to those that are trained.
      tx: `(experiment, transformation, steps) -> transformation` of the updates.
      end: `(params, factorize) -> params`, to the compressed form again; `factorize`
        puts products of the same ranks where the compression had its factors.
    """

    begin: Callable[[Tree], Tree]
    tx: Callable[["Tuned", Any, int], optax.GradientTransformation]
    end: Callable[[Tree, Callable[[Tree], Tree]], Tree]


def _rank(share: float) -> Callable[[tuple[int, ...]], int]:
    return functools.partial(rank_keeping, share)


def _svd(_: "Compress", share: float) -> Fit:
    rank = _rank(share)
    return lambda kernel, _: svd(kernel, rank(materialize(kernel).shape))


def _fwsvd(_: "Compress", share: float) -> Fit:
    return rows(_rank(share))


def _wsvd(experiment: "Compress", share: float) -> Fit:
    return entries(
        _rank(share), method=experiment.solver, iterations=experiment.iterations
    )


def _rescue(experiment: "Compress", share: float) -> Fit:
    return rescued(
        _rank(share), method=experiment.solver, iterations=experiment.iterations
    )


def _lrpet(experiment: "Tuned", tx: Any, steps: int) -> optax.GradientTransformation:
    """Dense kernels, brought back to their ranks now and then, and at the end."""
    # Of an un-split run: all stages are in segment 0.
    plan = at_rank(f"0/(?:{experiment.where})", _rank(experiment.share))
    return optax.chain(tx, lrpet(plan, every=experiment.tune_every, last=steps))


# A factor joins the table by a line here; each must run through tests/laws/test_factor.
METHODS = {
    "svd": Method(_svd, weighted=False),
    "fwsvd": Method(_fwsvd),
    "wsvd": Method(_wsvd),
    "rescue": Method(_rescue),
}
TUNES = {
    "factors": Tune(
        begin=lambda params: params,
        tx=lambda _, tx, __: tx,
        end=lambda params, _: params,
    ),
    "lrpet": Tune(
        begin=materialize,
        tx=_lrpet,
        end=lambda params, factorize: factorize(params),
    ),
}


@dataclasses.dataclass
class Compress(Finetune):
    """A fine-tuned model, compressed by several methods to several sizes."""

    mode: str = option("unsplit", "'unsplit': a model is compressed as a whole")
    trained: str = option("", "the folder of a finished un-split run; '': train one")
    factors: tuple[str, ...] = option(
        ("svd", "fwsvd", "wsvd"), f"by what: some of {tuple(METHODS)}"
    )
    shares: tuple[float, ...] = option(
        (0.7, 0.5, 0.3), "parts of the matrices' numbers that are kept"
    )
    where: str = option(r"layer_\d+/.*/kernel", "which matrices, by their path")
    fisher_examples: int = option(256, "training examples that the Fisher is of")
    fisher_chunk: int = option(4, "examples whose gradients are held at once")
    solver: str = option("als", "of wsvd: 'als', 'em' or 'adam_sgd'")
    iterations: int = option(4, "of the solver")
    score_on: tuple[str, ...] = option((), "data splits to score on; (): all")
    tune: str = option("", f"train on afterwards: '' or one of {tuple(TUNES)}")
    tune_epochs: int = option(1, "passes over the training data then")
    tune_steps: int = option(0, "steps at most then; 0: as many as the epochs have")
    tune_rate: float = option(2e-5, "the peak of the learning rate then")
    tune_every: int = option(30, "steps between projections of 'lrpet'")

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        check(self.mode, "mode", ("unsplit",))
        check(self.solver, "solver", ("als", "em", "adam_sgd"))
        for name in self.factors:
            check(name, "factors", tuple(METHODS))
        if self.tune:
            check(self.tune, "tune", tuple(TUNES))
        if not self.factors or not self.shares:
            raise ValueError("factors and shares name one thing each at least")
        for share in self.shares:
            if not 0 < share <= 1:
                raise ValueError(f"shares has {share}: each is from 0 to 1")
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be 1 or more")

    def dense(self) -> Finetune:
        """The run whose model is compressed."""
        return Finetune(**_fields_of(self, Finetune))

    def tuned(self, factor: str, share: float, params: Tree) -> "Tuned":
        """The run that trains on from compressed parameters, by stage name."""
        given: dict[str, Any] = _fields_of(self, Finetune)
        given |= {name: getattr(self, name) for name in DECIDES}
        given |= {"epochs": self.tune_epochs, "learning_rate": self.tune_rate}
        given |= {"steps": self.tune_steps}
        given |= {"unsplit_rate": 0.0, "factor": factor, "share": share}
        made = Tuned(**given)
        object.__setattr__(made, "begin", TUNES[self.tune].begin(params))
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

    begin: ClassVar[Any] = None  # an instance's parameters, by stage name

    def _given(self, config: Any, pairs: bool, key: jax.Array) -> Tree:
        """Where the run starts: all parameters, by stage name."""
        del config, pairs, key
        return self.begin

    def tx(self, steps: int) -> optax.GradientTransformation:
        """The optimizer, for a run of so many steps."""
        return TUNES[self.tune].tx(self, super().tx(steps), steps)


def _fields_of(experiment: Any, kind: type) -> dict[str, Any]:
    return {f.name: getattr(experiment, f.name) for f in dataclasses.fields(kind)}
