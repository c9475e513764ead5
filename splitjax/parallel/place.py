"""Where one stage of a pipeline lives: a device, or a mesh of its own."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from splitjax.core.tree import Tree, flat

ROWS = "data"  # the axis of a mesh that parts the rows of a batch


@dataclasses.dataclass(frozen=True)
class Place:
    """One stage's devices, and how its arrays lie on them.

    Attributes:
      home: a device, or a mesh; over its axis "data", where it has one, the rows of
        activations are parted, and all else is there as a whole.
      shardings: `(mesh, params) -> shardings` of the parameters on a mesh; None: each
        device has them whole.

    Example:
      >>> place = Place(jax.devices()[0])
      >>> place.rows({"h": jax.numpy.ones((4, 2))})["h"].devices() == {place.home}
      True
    """

    home: jax.Device | Mesh
    shardings: Callable[[Mesh, Tree], Tree] | None = None

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        """The devices, each once."""
        if isinstance(self.home, Mesh):
            return tuple(self.home.devices.flat)
        return (self.home,)

    @property
    def parts(self) -> int:
        """Into how many parts the rows are parted."""
        return self.home.shape.get(ROWS, 1) if isinstance(self.home, Mesh) else 1

    def whole(self, tree: Tree) -> Tree:
        """A tree on every device of this place."""
        if isinstance(self.home, Mesh):
            return jax.device_put(tree, NamedSharding(self.home, PartitionSpec()))
        return jax.device_put(tree, self.home)

    def params(self, tree: Tree) -> Tree:
        """Parameters, as `shardings` says."""
        if isinstance(self.home, Mesh) and self.shardings is not None:
            return jax.device_put(tree, self.shardings(self.home, tree))
        return self.whole(tree)

    def rows(self, tree: Tree) -> Tree:
        """Activations, whose first axis is the batch.

        Raises:
          ValueError: when the rows of a leaf cannot be parted equally.
        """
        if self.parts == 1:
            return self.whole(tree)
        assert isinstance(self.home, Mesh)
        for name, leaf in flat(tree).items():
            if leaf.ndim and leaf.shape[0] % self.parts:
                raise ValueError(
                    f"{name or 'a batch'} has {leaf.shape[0]} rows, which the axis "
                    f"{ROWS!r} of {self.parts} does not divide: a batch must be a "
                    "multiple of its micro-batches times this axis"
                )
        mesh = self.home
        return jax.tree.map(
            lambda leaf: jax.device_put(
                leaf,
                NamedSharding(mesh, PartitionSpec(*(ROWS,) * min(leaf.ndim, 1))),
            ),
            tree,
        )


def places(
    homes: Sequence[jax.Device | Mesh | Place], stages: int
) -> tuple[Place, ...]:
    """One place for each stage.

    Raises:
      ValueError: for another number of them, a device that two stages share, or one of
        another process.

    Example:
      >>> len(places(jax.devices()[:1], 1))
      1
    """
    found = tuple(home if isinstance(home, Place) else Place(home) for home in homes)
    if len(found) != stages:
        raise ValueError(f"{stages} stages need {stages} places, not {len(found)}")
    used = [device for place in found for device in place.devices]
    if twice := {str(device) for device in used if used.count(device) > 1}:
        raise ValueError(f"two stages share {sorted(twice)}: give each its own")
    here = jax.process_index()
    if far := [str(device) for device in used if device.process_index != here]:
        raise ValueError(
            f"{far} belong to another process, where arrays cannot be put: use a "
            "pipeline of one program (shard_map) across processes"
        )
    return found
