"""How a training step is spread, and what it saves memory by: one set of options."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from splitjax.core.stage import Repeat, Segment, Stage, join, repeat, with_apply
from splitjax.core.tree import Tree, nearest
from splitjax.parallel.mesh import parse

CHECKPOINTS = ("none", "dots", "full", "names", "offload")
PRECISIONS = ("float32", "bfloat16", "mixed")


@dataclasses.dataclass(frozen=True)
class Scale:
    """Options of a training step; every class of the report below is one of them.

    Attributes:
      mesh: see `make_cloud_mesh`: "data", "tensor", "pipe" and "expert" parallelism.
      zero: what lies apart over "data": 1: the optimizer's state; 2: the gradients too;
        3: the parameters too; 0: nothing.
      checkpoint: what a stage keeps for the backward pass. "none": all it needs;
        "dots": the results of its matrix products; "full": its input alone; "names":
        the outputs of the stages in `names`, of the whole model; "offload": those, in
        the host's memory.
      names: see `checkpoint`.
      precision: "float32"; "bfloat16": parameters and gradients, whose moments are
        float32; "mixed": likewise, and the optimizer keeps the parameters in float32,
        2 + 2 + 12 bytes a parameter with Adam.
      offload: whether the optimizer's state waits in the host's memory.
      flat: whether the optimizer sees all parameters as one vector: fewer operations.

    Raises:
      ValueError: for an unknown value, or options that contradict each other.

    Example:
      >>> Scale(mesh="data=4,tensor=2", zero=1, precision="mixed").sizes
      {'data': 4, 'tensor': 2}
      >>> Scale(mesh="data=8", zero=3, flat=True)
      Traceback (most recent call last):
      ...
      ValueError: flat=True with zero=3: one vector of all parameters cannot lie apart \
leaf by leaf; leave one of them away

    Reference:
      Liu and Jiang, Dive into big model training, 2022 (arXiv:2207.11912), whose
      classes are training parallelism, memory saving and sparsity; Rajbhandari et al.,
      ZeRO: Memory optimizations toward training trillion parameter models, 2019
      (arXiv:1910.02054), section 5: the stages 1 to 3.
    Differs:
      ZeRO's stages are shardings; the compiler finds what is sent.
    """

    mesh: str = "data=1"
    zero: int = 0
    checkpoint: str = "none"
    names: tuple[str, ...] = ()
    precision: str = "float32"
    offload: bool = False
    flat: bool = False

    def __post_init__(self):
        """Refuses what makes no sense."""
        sizes = self.sizes
        for name, allowed in (("checkpoint", CHECKPOINTS), ("precision", PRECISIONS)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: {nearest(str(value), allowed)}")
        if self.zero not in (0, 1, 2, 3):
            raise ValueError(f"zero={self.zero!r}: a stage from 0 to 3")
        if self.zero and "data" not in sizes:
            raise ValueError(
                f"zero={self.zero} on mesh={self.mesh!r}: it lies apart over 'data', "
                "which the mesh does not have"
            )
        if self.flat and self.zero:
            raise ValueError(
                f"flat=True with zero={self.zero}: one vector of all parameters cannot "
                "lie apart leaf by leaf; leave one of them away"
            )
        if apart := [a for a in sizes if a != "data" and sizes[a] > 1]:
            if self.flat:
                raise ValueError(
                    f"flat=True on mesh={self.mesh!r}: parameters lie apart over "
                    f"{apart}, and one vector would gather them at every step"
                )
        by_name = self.checkpoint in ("names", "offload")
        if by_name != bool(self.names):
            raise ValueError(
                f"checkpoint={self.checkpoint!r} with names={self.names}: names go "
                "with 'names' and 'offload', which need some"
            )

    @property
    def sizes(self) -> dict[str, int]:
        """Of the mesh, by axis."""
        return parse(self.mesh)

    @property
    def dtype(self) -> Any:
        """Of the parameters that the model sees."""
        return jnp.float32 if self.precision == "float32" else jnp.bfloat16


def checkpointed(stage: Stage, scale: Scale) -> Stage:
    """A stage that keeps for its backward pass what the options say.

    Parameters, outputs and gradients are the same; what is not kept is computed again.

    Args:
      stage: a model (see `core.stage.join`), a stack of blocks, or any stage. "dots"
        and "full" part it at every stage and block, "names" and "offload" nowhere but
        at the outputs that are named.
      scale: the options.

    Returns:
      The stage; with "names" and "offload" one that is not opened again.

    Raises:
      ValueError: for a name that no stage has.

    Example:
      >>> double = Stage("double", init=lambda key, spec: ({}, {}),
      ...     apply=lambda p, s, x, *, key, train: (2 * x, s, {}))
      >>> again = checkpointed(double, Scale(checkpoint="full"))
      >>> float(again.apply({}, {}, jnp.float32(3), key=None, train=False)[0])
      6.0

    Reference:
      Chen et al., Training deep nets with sublinear memory cost, 2016
      (arXiv:1604.06174).
    Differs:
      the paper keeps the borders of about sqrt(n) groups of n layers; here every stage
      and block is a group ("full"), or what is kept is chosen ("dots", "names",
      "offload").
    """
    known, policies = _names(stage), jax.checkpoint_policies
    for name in scale.names:
        if name not in known:
            raise ValueError(f"names has {name!r}: {nearest(name, known)}")
    if scale.checkpoint == "none":
        return stage
    if scale.checkpoint == "full":
        return _each(stage, lambda one: _again(one, policies.nothing_saveable))
    if scale.checkpoint == "dots":
        return _each(stage, lambda one: _again(one, policies.dots_saveable))
    if scale.checkpoint == "names":
        policy = policies.save_only_these_names(*scale.names)
    else:
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(scale.names),
            offload_src="device",
            offload_dst="pinned_host",
        )
    return _again(_each(stage, _named), policy)


def _names(stage: Stage) -> tuple[str, ...]:
    if isinstance(stage, Segment):
        return tuple(name for one in stage.stages for name in _names(one))
    return _names(stage.block) if isinstance(stage, Repeat) else (stage.name,)


def _each(stage: Stage, change: Any) -> Stage:
    """The stage with every stage in it changed; a stack by its block."""
    if isinstance(stage, Segment):
        return join([_each(one, change) for one in stage.stages], stage.name)
    if isinstance(stage, Repeat):
        return repeat(_each(stage.block, change), stage.count, first=stage.first)
    return change(stage)


def _again(stage: Stage, policy: Any) -> Stage:
    def apply(params: Tree, state: Tree, x: Tree, *, key, train, **tied):
        def run(params, state, x, key, tied):
            return stage.apply(params, state, x, key=key, train=train, **tied)

        return jax.checkpoint(run, policy=policy)(params, state, x, key, tied)

    return with_apply(stage, apply)


def _named(stage: Stage) -> Stage:
    def apply(params: Tree, state: Tree, x: Tree, **kwargs):
        y, state, aux = stage.apply(params, state, x, **kwargs)
        return checkpoint_name(y, stage.name), state, aux

    return with_apply(stage, apply)
