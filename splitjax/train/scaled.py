"""How a training step saves memory, in an experiment: the options of a `Scale`."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import optax

from splitjax.core.algorithm import Algorithm
from splitjax.core.factor import cast_floats
from splitjax.core.keys import fold
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree
from splitjax.optim.decay import decayed
from splitjax.optim.mixed_precision import mixed_precision
from splitjax.parallel.mesh import make_cloud_mesh, parse
from splitjax.parallel.scale import PRECISIONS, Scale, checkpointed
from splitjax.parallel.spread import spread
from splitjax.train.experiment import Experiment, Parts, check, option

RECOMPUTE = ("none", "dots", "full")  # of `Scale.checkpoint`; others name stages


@dataclasses.dataclass
class Scaled(Experiment):
    """Options of memory: `zero` and `offload` are of a cloud on a mesh, others of all.

    What is computed in (`dtype`) is another matter than what parameters are kept in.
    With `dtype="bfloat16"` alone they are float32 and rounded for each product.
    """

    zero: int = option(
        0,
        "what lies apart over the mesh's axis data (ZeRO): 1: the optimizer's state; 2:"
        " gradients, too; 3: parameters, too",
    )
    recompute: str = option(
        "none",
        "what a backward pass computes again: 'none'; 'dots': all but matrix products; "
        "'full': all of a stage but its input",
    )
    precision: str = option(
        "float32",
        "of kernels, embeddings and their gradients: 'float32'; 'bfloat16': rounded by "
        "chance; 'mixed': beside a float32 copy; moments are float32",
    )
    offload: bool = option(
        False, "on a mesh: the optimizer's state waits in the memory of the host"
    )

    # Where arrays are and when they are made, but for rounding not what they are.
    WATCHING: ClassVar[tuple[str, ...]] = (
        *Experiment.WATCHING,
        *("zero", "recompute", "offload"),
    )

    def scaling(self) -> Scale:
        """The options together.

        Raises:
          ValueError: where they contradict each other.
        """
        return Scale(
            mesh=self.mesh or "data=1",
            zero=self.zero,
            checkpoint=self.recompute,
            precision=self.precision,
            offload=self.offload,
        )

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        check(self.recompute, "recompute", RECOMPUTE)
        check(self.precision, "precision", PRECISIONS)
        self.scaling()
        named = [f"{name}={getattr(self, name)!r}" for name in ("zero", "offload")]
        on_mesh = [text for text, on in zip(named, self._placed(), strict=True) if on]
        if on_mesh and not self.mesh:
            raise ValueError(
                f"{on_mesh[0]} is of a cloud on a mesh, and mesh is empty: name one "
                "whose axes have as many places as there are devices, as 'data=8'; or "
                "'data=1' for a single one"
            )
        if on_mesh and parse(self.mesh).get("pipe", 1) > 1:
            raise ValueError(
                f"{on_mesh[0]} on mesh={self.mesh!r}: what a pipeline holds lies apart "
                "over 'pipe' as it is; take a mesh without it"
            )
        changed = [*on_mesh, f"precision={self.precision!r}"]
        if self.optimizer == "kfac" and (on_mesh or self.precision != "float32"):
            raise ValueError(
                f"{changed[0]} with optimizer='kfac': its factors are float32 and "
                "whole on each device; take another optimizer"
            )
        super().validate()

    def unsplit(self) -> Self:
        """The same without a cut, and so without what a mesh is for."""
        return dataclasses.replace(super().unsplit(), zero=0, offload=False)

    def cloud_algorithm(self, parts: Parts) -> Algorithm:
        """The algorithm as the cloud runs it; see `Experiment.cloud_algorithm`."""
        if not any(self._placed()):
            return super().cloud_algorithm(parts)
        mesh = make_cloud_mesh(self.mesh)
        return spread(parts.algorithm, mesh, zero=self.zero, offload=self.offload)

    def recomputed(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """A model's stages, each keeping what `recompute` says; see `checkpointed`."""
        return tuple(checkpointed(stage, self.scaling()) for stage in stages)

    def narrowed(self, params: Tree) -> Tree:
        """Parameters as they are kept: norms and biases stay float32.

        Args:
          params: arrays or specs.
        """
        if self.precision == "float32":
            return params
        leaves = jax.tree.leaves(params)
        is_spec = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)

        def narrow(params):
            return jax.tree.map(
                lambda leaf, wide: cast_floats(leaf, jnp.bfloat16) if wide else leaf,
                params,
                decayed(params),
            )

        return jax.eval_shape(narrow, params) if is_spec else narrow(params)

    def widened(self, tx: optax.GradientTransformation, seed: int) -> Any:
        """An optimizer of float32 for parameters as they are kept; `seed` rounds."""
        if self.precision == "float32":
            return tx
        rounding = {"bfloat16": "stochastic", "mixed": "copy"}[self.precision]
        key = fold(jax.random.key(seed), "precision")
        return mixed_precision(tx, rounding=rounding, key=key)

    def identity(self, seed: int) -> dict:
        """What decides the numbers of one run; precision does where it is not full."""
        fields = super().identity(seed)
        if self.precision == "float32":
            del fields["precision"]
        return fields

    def _placed(self) -> tuple[bool, bool]:
        """Whether `zero` and `offload` are asked for."""
        return self.zero > 0, self.offload
