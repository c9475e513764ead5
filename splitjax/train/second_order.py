"""K-FAC in an experiment: its options, its optimizer, and taps for the layers."""

import dataclasses
import logging
from typing import Any, ClassVar

import jax
import optax

from splitjax.core.split import Split
from splitjax.core.tree import Tree, flat
from splitjax.optim.curvature import REDUCTIONS, TAPS, with_taps
from splitjax.optim.kfac import dp_kfac, left_out
from splitjax.optim.kronecker import METHODS
from splitjax.optim.tap_use import check_taps
from splitjax.runtime.run_state import RunState
from splitjax.storage.log import Log
from splitjax.train.experiment import Experiment, check, option


@dataclasses.dataclass
class SecondOrder(Experiment):
    """Options of `optimizer="kfac"`: SGD with a momentum on preconditioned gradients.

    Each party has the factors of its own layers; what crosses is as without it.
    """

    kfac_damping: float = option(1e-3, "of K-FAC's factors, above 0")
    kfac_ema_old: float = option(0.95, "the weight of the old factors, below 1")
    kfac_factor_every: int = option(1, "steps from one update of factors to the next")
    kfac_inverse_every: int = option(1, "steps from one inversion to the next")
    kfac_clip: float = option(1e-3, "the bound of K-FAC on a step; 0: none")
    kfac_method: str = option("cholesky", f"how factors are inverted: one of {METHODS}")
    kfac_tokens: str = option("mean", f"tokens of an example: one of {REDUCTIONS}")
    kfac_layers: str = option(
        ".*", "a regular expression on paths of kernels: which have factors"
    )

    OPTIMIZERS: ClassVar[tuple[str, ...]] = (*Experiment.OPTIMIZERS, "kfac")

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        check(self.kfac_tokens, "kfac_tokens", REDUCTIONS)
        if self.optimizer == "kfac":
            self._kfac(optax.identity(), 1e-3)

    def rule(self, steps: int) -> optax.GradientTransformation:
        """What steps along clipped gradients; for "kfac" preconditioned ones."""
        plain = super().rule(steps)
        if self.optimizer != "kfac":
            return plain
        return where_tapped(self._kfac(plain, self.rate(steps)), plain)

    def tapped(self, split: Split, params: tuple, state: tuple, x: Tree) -> tuple:
        """Params by segment, with taps where K-FAC needs them; else as they are.

        Args:
          split: the cut model.
          params: by segment; arrays or specs.
          state: likewise.
          x: an input.

        Raises:
          ValueError: when no layer is chosen, or one that does not run, or runs twice.
        """
        if self.optimizer != "kfac":
            return params

        def all_of(params):
            learned = {str(i): p for i, p in enumerate(params) if i >= split.frozen}
            chosen = rf"\d+/(?:{self.kfac_layers})"  # by segment, then by stage name
            made = with_taps(learned, chosen, reduce=self.kfac_tokens)
            return tuple(made.get(str(i), p) for i, p in enumerate(params))

        def run(params, state, x):
            for part, p, s in zip(split.cut.segments, params, state, strict=True):
                x = part.apply(p, s, x, key=None, train=False)[0]
            return x

        specs: Any = jax.eval_shape(all_of, params)
        check_taps(run, specs, state, x)
        leaves = jax.tree.leaves(params)
        is_spec = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
        return specs if is_spec else all_of(params)

    def identity(self, seed: int) -> dict:
        """What decides the numbers of one run; K-FAC's options do where it is used."""
        fields = super().identity(seed)
        if self.optimizer == "kfac":
            return fields
        return {k: v for k, v in fields.items() if not k.startswith("kfac_")}

    def _kfac(self, inner: optax.GradientTransformation, rate: Any):
        return dp_kfac(
            inner,
            learning_rate=rate,
            damping=self.kfac_damping,
            ema_old=self.kfac_ema_old,
            factor_every=self.kfac_factor_every,
            inverse_every=self.kfac_inverse_every,
            kl_clip=self.kfac_clip or None,
            method=self.kfac_method,
        )


def tell_left_out(log: Log, state: RunState) -> None:
    """Writes what K-FAC had to leave out so far into a run's log, and warns of it.

    Nothing where all went well, or where there is no K-FAC.

    Example: `tell_left_out(log, run.state)`, as `train.loop` does once an epoch.
    """
    if missed := left_out((state.edge, state.slot)):
        log.write(state.step, **{f"kfac/{name}": n for name, n in missed.items()})
        logging.warning(
            "K-FAC until step %d: %s (sums that were not finite, failed inversions by "
            "Cholesky, steps of layers that were plain gradients): raise "
            "kfac_damping, or look for inputs that are no numbers",
            state.step,
            missed,
        )


def where_tapped(
    kfac: optax.GradientTransformation, plain: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """K-FAC for a party whose parameters have taps; for one without, `plain`.

    An edge that holds no layer but an embedding, say.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = where_tapped(dp_kfac(optax.sgd(1), kl_clip=None), optax.sgd(1))
      >>> tx.update({"w": jnp.ones(1)}, tx.init({"w": jnp.ones(1)}))[0]["w"].tolist()
      [-1.0]
    """
    ways = [optax.with_extra_args_support(tx) for tx in (plain, kfac)]

    def of(tree):
        return ways[any(f"{TAPS}/" in name for name in flat(tree))]

    def update(updates, state, params=None, **extra):
        return of(updates).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(
        lambda params: of(params).init(params), update
    )
