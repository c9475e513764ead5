"""Layers of one shape as one stack, whose rows are owned by the devices of a mesh."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from splitjax.core.matrix import as_matrix, from_matrix
from splitjax.core.tree import Tree, flat
from splitjax.optim.curvature import TAPS, kernel_shape, layout_of


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers whose kernels, with the bias as a last row, are (I, J) matrices alike.

    Attributes:
      inputs: I, with the bias.
      outputs: J.
      layers: the paths of their nodes, ending in "/" ("" for the root).
      rows: how many matrices each layer has (more than one where a scan runs it).
      shards: W, the devices that share the stack.

    Example:
      >>> one = Stack(4, 2, ("a/", "b/", "c/"), (1, 1, 1), shards=2)
      >>> one.length, one.padding
      (4, 1)
    """

    inputs: int
    outputs: int
    layers: tuple[str, ...]
    rows: tuple[int, ...]
    shards: int = 1

    @property
    def name(self) -> str:
        """As "577x64"."""
        return f"{self.inputs}x{self.outputs}"

    @property
    def length(self) -> int:
        """The number of matrices, padded to a multiple of the shards."""
        return -(-sum(self.rows) // self.shards) * self.shards

    @property
    def padding(self) -> int:
        """How many of them stand for no layer.

        Fewer layers of one shape than devices are a waste: use fewer shards, or leave
        such layers out by the pattern of `with_taps`.
        """
        return self.length - sum(self.rows)


def stacks(params: Tree, shards: int = 1) -> tuple[Stack, ...]:
    """The layers of params that have taps, by shape, in the order of their paths.

    Args:
      params: with taps; arrays or specs.
      shards: see `Stack`.

    Raises:
      ValueError: when no layer has taps, or `shards` is below 1.

    Example:
      >>> from splitjax.optim.curvature import with_taps
      >>> layer = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> [one] = stacks(with_taps({"a": layer, "b": layer}), shards=4)
      >>> one.name, one.layers, one.padding
      ('4x2', ('a/', 'b/'), 2)
    """
    if shards < 1:
        raise ValueError(f"shards={shards}: the number of devices, from 1 on")
    leaves, mark = flat(params), f"{TAPS}/tap_a"
    found: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for name in leaves:
        if not name.endswith(mark):
            continue
        path = name.removesuffix(mark)
        *lead, inputs, outputs = kernel_shape(leaves[f"{path}kernel"].shape)
        shape = (inputs + (f"{path}bias" in leaves), outputs)
        found.setdefault(shape, []).append((path, lead[0] if lead else 1))
    if not found:
        raise ValueError(
            "no layer of params has K-FAC's taps: put them there by "
            f"optim.with_taps(params). There are: {', '.join(leaves)}"
        )
    return tuple(
        Stack(*shape, *map(tuple, zip(*layers, strict=True)), shards=shards)
        for shape, layers in found.items()
    )


def check_shards(axis_name: str | None, shards: int) -> None:
    """Raises unless a mesh's axis has so many devices; called inside of `shard_map`.

    Example:
      >>> check_shards(None, 1)
    """
    if axis_name is not None and jax.lax.axis_size(axis_name) != shards:
        raise ValueError(
            f"shards={shards}, and the axis {axis_name!r} has "
            f"{jax.lax.axis_size(axis_name)} devices: give that number (and see "
            "`kfac_mesh.reshard` for a state of another)"
        )


def gathered(stack: Stack, leaves: dict[str, jax.Array]) -> jax.Array:
    """Kernels (or their gradients) with their biases: (length, I, J) float32.

    Example:
      >>> leaves = {"kernel": jnp.ones((1, 2)), "bias": jnp.array([3.0, 4.0])}
      >>> gathered(Stack(2, 2, ("",), (1,)), leaves).tolist()
      [[[1.0, 1.0], [3.0, 4.0]]]
    """

    def one(path):
        kernel = leaves[f"{path}kernel"]
        matrix = as_matrix(kernel, layout_of(kernel.shape))
        matrix = matrix.reshape(-1, *matrix.shape[-2:]).astype(jnp.float32)
        if (bias := leaves.get(f"{path}bias")) is not None:
            bias = bias.reshape(-1, 1, bias.shape[-1]).astype(jnp.float32)
            matrix = jnp.concatenate([matrix, bias], 1)
        return matrix

    return _padded(stack, [one(path) for path in stack.layers])


def given_back(
    stack: Stack, made: jax.Array, leaves: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Undoes `gathered`: what each kernel and bias gets, in the dtypes of `leaves`.

    Example: see `gathered`.
    """
    new, start = {}, 0
    for path, rows in zip(stack.layers, stack.rows, strict=True):
        part, start = made[start : start + rows], start + rows
        kernel, bias = leaves[f"{path}kernel"], leaves.get(f"{path}bias")
        matrix = part if bias is None else part[:, :-1]
        matrix = from_matrix(matrix, kernel.shape, layout_of(kernel.shape))
        new[f"{path}kernel"] = matrix.astype(kernel.dtype)
        if bias is not None:
            new[f"{path}bias"] = part[:, -1].reshape(bias.shape).astype(bias.dtype)
    return new


def gathered_taps(
    stack: Stack, leaves: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The sums of the taps: (length, I, I), (length, J, J), and the examples (length,).

    A padding, and a layer that has collected nothing, counts no examples.

    Example:
      >>> from splitjax.optim.curvature import Taps
      >>> taps = {"tap_kfac/tap_a": 2 * jnp.ones((3, 3)), "tap_kfac/tap_g": jnp.eye(1)}
      >>> a, g, count = gathered_taps(Stack(2, 1, ("",), (1,)), taps)
      >>> a.shape, g.shape, count.tolist()
      ((1, 2, 2), (1, 1, 1), [2.0])
    """

    def three(name):
        found = [leaves[f"{path}{TAPS}/{name}"] for path in stack.layers]
        return [a.reshape(-1, *a.shape[-2:]) for a in found]

    ways = three("tap_a")
    count = _padded(stack, [a[:, -1, -1] for a in ways])
    # The trailing 1 is part of a row where there is a bias.
    a = _padded(stack, [a[:, : stack.inputs, : stack.inputs] for a in ways])
    return a, _padded(stack, three("tap_g")), count


def _padded(stack: Stack, parts: Sequence[jax.Array]) -> jax.Array:
    whole = jnp.concatenate(parts)
    return jnp.pad(whole, [(0, stack.padding)] + [(0, 0)] * (whole.ndim - 1))
