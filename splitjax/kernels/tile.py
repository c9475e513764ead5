"""The part of an array that one program of a kernel works on."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp


def erf(x: jax.Array) -> jax.Array:
    """erf(x) to 6e-7 by exponentials and products, for where there is no `lax.erf`.

    Triton's lowering has none.

    Example:
      >>> round(float(erf(jnp.float32(0.5))), 6)
      0.5205

    Reference:
      C. Hastings, "Approximations for Digital Computers", 1955, sheet 43, which is
      7.1.26 of Abramowitz and Stegun's handbook.
    """
    a = jnp.abs(x)
    t = 1 / (1 + 0.3275911 * a)
    p = 1.061405429
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = p * t + c
    y = 1 - p * t * jnp.exp(-a * a)
    return jnp.where(x < 0, -y, y)


@dataclasses.dataclass(frozen=True)
class Tile:
    """A whole array (..., W), or the R rows and C columns of it that a program has.

    A tile may hang over the array's edge; what lies there is anything, and the sums
    leave it out.

    Attributes:
      shape: of the array; N, the number of rows, is the product of all axes but the
        last.
      row: int32 (R, 1), where the tile's rows are; None for the whole array.
      column: int32 (1, C), likewise.
      over: whether the tile hangs over the last row, and over the last column.
      erf: how the error function is computed here.

    Example:
      >>> tile, x = Tile((2, 3)), jnp.ones((2, 3))
      >>> tile.sum_columns(x).tolist(), tile.sum_rows(x).tolist()
      ([[3.0], [3.0]], [[2.0, 2.0, 2.0]])
    """

    shape: tuple[int, ...]
    row: jax.Array | None = None
    column: jax.Array | None = None
    over: tuple[bool, bool] = (False, False)
    erf: Callable[[jax.Array], jax.Array] = jax.lax.erf

    def sum_columns(self, x: jax.Array) -> jax.Array:
        """The sum of each row, (..., 1)."""
        return self._columns(x, 0.0).sum(-1, keepdims=True)

    def max_columns(self, x: jax.Array) -> jax.Array:
        """The greatest of each row, (..., 1)."""
        return self._columns(x, -jnp.inf).max(-1, keepdims=True)

    def sum_rows(self, x: jax.Array) -> jax.Array:
        """The sum of each column, (1, ..., C)."""
        if self.row is not None and self.over[0]:
            x = jnp.where(self.row < self.shape[0], x, 0.0)
        return x.sum(tuple(range(x.ndim - 1)), keepdims=True)

    def columns(self) -> jax.Array:
        """Where the columns are, int32 (1, ..., C)."""
        if self.column is not None:
            return self.column
        lead = (1,) * (len(self.shape) - 1)
        return jax.lax.broadcasted_iota(jnp.int32, (*lead, self.shape[-1]), len(lead))

    def places(self) -> jax.Array:
        """A number for each value, the same wherever the array is parted: uint32."""
        if self.row is not None and self.column is not None:
            row, column = self.row.astype(jnp.uint32), self.column.astype(jnp.uint32)
            return row * jnp.uint32(self.shape[-1]) + column
        place = jnp.zeros(self.shape, jnp.uint32)
        for axis in range(len(self.shape)):
            stride = jnp.uint32(math.prod(self.shape[axis + 1 :]) % 2**32)
            here = jax.lax.broadcasted_iota(jnp.uint32, self.shape, axis)
            place = place + here * stride
        return place

    def _columns(self, x: jax.Array, outside: float) -> jax.Array:
        if self.column is not None and self.over[1]:
            return jnp.where(self.column < self.shape[-1], x, outside)
        return x
