"""Shardings that part leaves over one more axis of a mesh, as ZeRO does."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from splitjax.core.tree import Tree
from splitjax.parallel.rules import Placed

# What lies apart from which stage of ZeRO on.
STATE, GRADIENTS, PARAMETERS = 1, 2, 3


def apart(
    params: Tree,
    whole: Tree,
    lines: Sequence[Placed],
    width: int,
    *,
    over: str = "data",
) -> tuple[Tree, tuple[Placed, ...]]:
    """Shardings that part each leaf over one more axis, and the report of it.

    A leaf lies apart along its longest free axis that `width` divides, so that a device
    has 1/width of its bytes; else along one that lies over another axis of the mesh
    already; else it stays as it was.

    Args:
      params: arrays or specs.
      whole: their shardings without it; see `rules.place`.
      lines: the report of those.
      width: places on the axis of the mesh.
      over: its name.

    Example:
      >>> from splitjax.parallel.mesh import make_cloud_mesh
      >>> from splitjax.parallel.rules import layout
      >>> mesh = make_cloud_mesh("data=1", devices=jax.devices()[:1])
      >>> params = {"wi": {"kernel": jax.numpy.ones((2, 4))}}
      >>> made, _ = apart(params, *layout(params, mesh), width=1)
      >>> made["wi"]["kernel"].spec
      P(None, None)

    Reference:
      Rajbhandari et al., ZeRO: Memory optimizations toward training trillion parameter
      models, 2019 (arXiv:1910.02054), section 5.
    Differs:
      the paper parts all leaves together into equal pieces; here each along an axis.
    """
    leaves, treedef = jax.tree.flatten(params)
    made, report = [], []
    for leaf, sharding, line in zip(leaves, jax.tree.leaves(whole), lines, strict=True):
        spec: list[Any] = [*sharding.spec, *(None,) * (leaf.ndim - len(sharding.spec))]
        parts = [_places(sharding.mesh.shape, names) for names in spec]
        divided = [
            (parts[axis] == 1, size // parts[axis], axis)
            for axis, size in enumerate(leaf.shape)
            if size and size % (parts[axis] * width) == 0
        ]
        if width > 1 and divided:
            axis = max(divided)[2]
            spec[axis] = (*_names(spec[axis]), over) if spec[axis] else over
        elif width > 1 and leaf.ndim and not line.problem:
            line = line._replace(problem=f"no axis that {over}={width} divides")
        made.append(NamedSharding(sharding.mesh, PartitionSpec(*spec)))
        report.append(line._replace(spec=made[-1].spec))
    return treedef.unflatten(made), tuple(report)


def _names(names: Any) -> tuple[str, ...]:
    """The axes of a mesh that an axis of a leaf lies over, the outermost first."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def _places(sizes: Mapping[str, int], names: Any) -> int:
    return math.prod(sizes[name] for name in _names(names))


def on_host(sharding: NamedSharding) -> NamedSharding:
    """The same place in the memory of the devices' host, pinned.

    A CPU keeps the two apart by name alone: there it shows that it works, not a saving.

    Example:
      >>> from splitjax.parallel.mesh import make_cloud_mesh
      >>> mesh = make_cloud_mesh("data=1", devices=jax.devices()[:1])
      >>> on_host(NamedSharding(mesh, PartitionSpec())).memory_kind
      'pinned_host'
    """
    return sharding.with_memory_kind("pinned_host")
