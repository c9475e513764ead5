"""A leaf seen as a matrix, and the rank that it is to have."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from splitjax.core.tree import Tree, nearest

# How many of a leaf's last axes are inputs, and how many outputs.
LAYOUTS = {"dense": (1, 1), "embedding": (1, 1), "conv": (3, 1), "core": (3, 1)}


@dataclasses.dataclass(frozen=True)
class Rule:
    """The rank of one leaf.

    Attributes:
      rank: R, from 1 on.
      layout: "dense": (..., I, J); "embedding": (..., V, D); "conv": (..., H, W, I, J),
        whose matrix is (I H W, J); "core": (..., d, i, j, d') of an MPO, whose matrix
        is (d i j, d'): its rank is that of a bond. Leading axes are a batch.
      norm: the path of the batch norm behind the leaf, whose scale decides what is
        kept; "" for none.
      eps: of that norm.

    Raises:
      ValueError: for a rank below 1 or an unknown layout.

    Example:
      >>> Rule(rank=4, layout="conv").rank
      4
    """

    rank: int
    layout: str = "dense"
    norm: str = ""
    eps: float = 1e-5

    def __post_init__(self):
        """Checks rank and layout."""
        _sides(self.layout)
        if not self.rank >= 1:
            raise ValueError(
                f"rank {self.rank}: it must be 1 or more; a ratio that leaves nothing "
                "of a small matrix needs a floor"
            )


Plan = Mapping[str, Rule]  # by the "/"-joined path of a leaf
Select = Callable[[Tree], Plan]


def matrix_shape(shape: tuple[int, ...], layout: str = "dense") -> tuple[int, ...]:
    """The shape (..., I, J) of a leaf's matrix.

    Raises:
      ValueError: for a leaf of too few axes, or an unknown layout.

    Example:
      >>> matrix_shape((3, 3, 16, 32), "conv"), matrix_shape((7, 5, 4))
      ((144, 32), (7, 5, 4))
    """
    ins, outs = _sides(layout)
    lead = len(shape) - ins - outs
    if lead < 0:
        raise ValueError(
            f"a leaf {tuple(shape)} has too few axes for a matrix: the layout "
            f"{layout!r} needs {ins + outs}; leave biases and norms out"
        )
    rows = math.prod(shape[lead : lead + ins])
    return (*shape[:lead], rows, math.prod(shape[lead + ins :]))


def as_matrix(kernel: jax.Array, layout: str = "dense") -> jax.Array:
    """A leaf as its matrix (..., I, J).

    The rows of a convolution are in the order (channel, height, width): a sharding of
    its input channels stays one of the rows.

    Example:
      >>> as_matrix(jnp.ones((3, 3, 2, 5)), "conv").shape
      (18, 5)
    """
    shape = matrix_shape(kernel.shape, layout)
    if layout == "conv":
        kernel = jnp.moveaxis(kernel, -2, -4)
    return kernel.reshape(shape)


def from_matrix(
    matrix: jax.Array, shape: tuple[int, ...], layout: str = "dense"
) -> jax.Array:
    """A matrix as a leaf of the given shape: undoes `as_matrix`.

    Example:
      >>> x = jnp.arange(24.0).reshape(2, 3, 2, 2)
      >>> back = from_matrix(as_matrix(x, "conv"), x.shape, "conv")
      >>> bool((back == x).all())
      True
    """
    if layout != "conv":
        return matrix.reshape(shape)
    *lead, height, width, channels, out = shape
    return jnp.moveaxis(matrix.reshape(*lead, channels, height, width, out), -4, -2)


def _sides(layout: str) -> tuple[int, int]:
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r}: {nearest(layout, tuple(LAYOUTS))}")
    return LAYOUTS[layout]
