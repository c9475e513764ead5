"""Bytes of a device in a training step: predicted, and held against the compiler's."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from splitjax.core.tree import Tree, is_float, spec_of
from splitjax.metrics.way_back import bytes_of, way_back

Loss = Callable[[Tree, Tree], jax.Array]
NOT_COUNTED = (
    "what an operation needs within itself, and gradients of activations under way",
    "activations that a tensor axis parts are counted whole",
    "the program, its constants, what other programs of the process hold",
    "caches of sessions, states of codecs",
)


class Memory(NamedTuple):
    """Bytes of one device in one training step.

    Attributes:
      params: parameters.
      moments: the optimizer's state, and float32 parameters where it keeps some.
      batch: the input.
      gradients: of the parameters.
      kept: what the forward pass leaves for the backward pass.
      again: what parts that are recomputed leave, while their backward pass runs.
      fullest: of these three, what is there at once at the fullest moment; gradients
        that are not summed yet are whole.
      gathered: parameters that lie apart, whole while the step computes (ZeRO 3).
    """

    params: int
    moments: int
    batch: int
    gradients: int
    kept: int
    again: int
    fullest: int
    gathered: int

    @property
    def arguments(self) -> int:
        """What is there before the step."""
        return self.params + self.moments + self.batch

    @property
    def temporary(self) -> int:
        """What comes and goes with the step, at its peak."""
        return self.fullest + self.gathered


class Held(NamedTuple):
    """A prediction beside what the compiler reserved.

    Attributes:
      name: "arguments" or "temporary".
      predicted_bytes: by `predict`.
      measured_bytes: by `compiled.memory_analysis()`.
    """

    name: str
    predicted_bytes: int
    measured_bytes: int


def predict(
    loss: Loss,
    params: Tree,
    moments: Tree,
    batch: Tree,
    *,
    gradients: Tree | None = None,
    whole: Tree | None = None,
) -> Memory:
    """The memory of a training step on each device, without compiling it.

    Leaves are arrays or specs; one with a sharding counts by the part that a device
    has. Activations are those that the vjp of `loss` keeps of a device's rows, beside
    its arguments; of a part under `jax.checkpoint` what its policy saves, and of all
    such parts in one body of a loop (`core.stage.repeat`) the rest, too. That is what a
    CPU holds, which computes them again at the same time; an accelerator is told to do
    it one by one, and may hold less. So checkpoints save memory where there is a loop.
    Blocks written one after the other give back what they kept while their gradients
    come; a loop does not. See `metrics.way_back`. Where devices have rows of
    their own, all gradients are summed at once, behind the last one.

    Args:
      loss: `(params, batch) -> scalar`, as it is differentiated, of any number of rows.
      params: the parameters.
      moments: what else a step changes: the optimizer's state.
      batch: the input.
      gradients: with the shardings of the gradients once they are summed over devices,
        where they are not those of the parameters. Before, each device has its own.
      whole: parameters with the shardings that they are computed with, where they lie
        apart in other ones.

    Example:
      >>> import jax.numpy as jnp
      >>> w, x = jnp.ones((3, 3)), jnp.ones((4, 3))
      >>> predict(lambda w, x: jnp.sin(x @ w).sum(), w, (w, w), x)
      Memory(params=36, moments=72, batch=48, gradients=36, kept=48, again=0, \
fullest=48, gathered=0)

    Reference:
      Chen et al., Training deep nets with sublinear memory cost, 2016
      (arXiv:1604.06174), section 4: the kept borders, and the largest segment.
    Differs:
      the paper adds the largest segment alone; here all of one body of a loop, and what
      is kept is counted of the traced program, not of a plan.
    """
    rows = jax.tree.map(lambda a: jax.ShapeDtypeStruct(_local(a), a.dtype), batch)
    specs = spec_of(params)
    own, computed = device_bytes(params), params if whole is None else whole
    each = [device_bytes(leaf) for leaf in jax.tree.leaves(computed) if is_float(leaf)]
    summed = device_bytes(params if gradients is None else gradients)
    back = way_back(loss, specs, rows, each)
    fullest = back.fullest
    if spec_of(rows) != spec_of(batch):  # the sums over devices are beside their parts
        fullest = max(fullest, sum(each) + summed)
    return Memory(
        params=own,
        moments=device_bytes(moments),
        batch=device_bytes(batch),
        gradients=summed,
        kept=back.kept,
        again=back.again,
        fullest=fullest,
        gathered=max(device_bytes(computed) - own, 0),
    )


def device_bytes(tree: Tree) -> int:
    """Bytes of a tree on the device that has most of it: all have alike, on a mesh.

    Example:
      >>> import numpy as np
      >>> device_bytes({"w": np.ones((2, 3), np.float32), "n": np.int32(0)})
      28
    """
    leaves = jax.tree.leaves(tree)
    return bytes_of([jax.ShapeDtypeStruct(_local(a), a.dtype) for a in leaves])


def hold(memory: Memory, compiled: Any) -> tuple[Held, Held]:
    """A prediction beside the bytes that the compiler reserved on a device.

    Args:
      memory: see `predict`.
      compiled: the step, of these arguments; what it gives back elsewhere than in their
        place is temporary, too.

    Raises:
      ValueError: where the backend does not tell.

    Example:
      >>> import jax.numpy as jnp
      >>> w, x = jnp.ones((3, 3)), jnp.ones((4, 3))
      >>> loss = lambda w, x: jnp.sin(x @ w).sum()
      >>> program = jax.jit(jax.grad(loss)).lower(w, x).compile()
      >>> hold(predict(loss, w, (), x), program)[0]
      Held(name='arguments', predicted_bytes=84, measured_bytes=84)
    """
    stats = compiled.memory_analysis()
    if stats is None:
        raise ValueError("this backend does not tell the memory of a program")
    more = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return (
        Held("arguments", memory.arguments, stats.argument_size_in_bytes),
        Held("temporary", memory.temporary, stats.temp_size_in_bytes + more),
    )


def table(memory: Memory, held: tuple[Held, ...] = ()) -> str:
    """A report as text, with what it does not count.

    Example:
      >>> print(table(Memory(4, 8, 2, 4, 6, 0, 9, 0)).splitlines()[0][:62])
      params 4 B, moments 8 B, batch 2 B, gradients 4 B, kept 6 B, a
    """
    sizes = ", ".join(f"{name} {size} B" for name, size in memory._asdict().items())
    rows = [
        f"{one.name}: predicted {one.predicted_bytes} B, measured "
        f"{one.measured_bytes} B, ratio "
        f"{one.predicted_bytes / max(one.measured_bytes, 1):.3f}"
        for one in held
    ]
    return "\n".join([sizes, *rows, *(f"not counted: {text}" for text in NOT_COUNTED)])


def _local(leaf: Any) -> tuple[int, ...]:
    sharding = getattr(leaf, "sharding", None)
    return leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
