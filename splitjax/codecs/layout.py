"""How an array falls into blocks of values that share a grid."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from splitjax.core.message import Sized, is_sized


@dataclasses.dataclass(frozen=True)
class Layout:
    """An array as blocks `[rows, groups, width]`; a grid reaches along one axis of it.

    Attributes:
      shape: of the array, or of the buffer of a `Sized`.
      sized: whether it is the buffer of a `Sized`.
      axis: along which a grid reaches: 2, or 0 for one grid per channel.
      rows: number of rows of the last axis.
      depth: values of such a row.
      width: values of a group.

    Example:
      >>> import jax.numpy as jnp
      >>> layout = Layout.of((2, 3, 5), sized=False, axis="group", group=4)
      >>> layout.split(jnp.zeros((2, 3, 5))).shape
      (6, 2, 4)
    """

    shape: tuple[int, ...]
    sized: bool
    axis: int
    rows: int
    depth: int
    width: int

    @classmethod
    def of(cls, shape: tuple[int, ...], *, sized: bool, axis: str, group: int):
        """The layout for one of quantize's axes."""
        flat = not shape or (sized and len(shape) == 1)
        if sized and flat:
            axis = "channel"  # a Sized vector has rows of one value: they share a grid
        depth = 1 if flat else shape[-1]
        rows = math.prod(shape if flat else shape[:-1])
        width = max(1, min(group, depth) if axis == "group" else depth)
        return cls(shape, sized, 0 if axis == "channel" else 2, rows, depth, width)

    @property
    def groups(self) -> int:
        """Groups of a row; the last one may be short."""
        return -(-self.depth // self.width)

    def packing(self, bits: int) -> tuple[int, ...]:
        """The shape whose last axis is packed into whole bytes, row by row.

        The rows of a `Sized` are packed each for itself: so the count of rows that
        crossed is the count that was used.
        """
        # Rows that fill whole bytes pack to as few as the flat array, and faster.
        whole = self.depth * bits % 8 == 0
        if self.sized:
            first = self.shape[0]
            if whole and self._inner > 1:
                return first, self._inner, self.depth
            return first, math.prod(self.shape[1:])
        return (self.rows, self.depth) if whole else (1, math.prod(self.shape))

    def split(self, x: jax.Array) -> jax.Array:
        """The blocks of an array; a short group ends in its last value, repeated."""
        x = x.reshape(self.rows, self.depth)
        if short := self.groups * self.width - self.depth:
            x = jnp.pad(x, ((0, 0), (0, short)), mode="edge")
        return x.reshape(self.rows, self.groups, self.width)

    def merge(self, blocks: jax.Array) -> jax.Array:
        """Undoes `split`."""
        x = blocks.reshape(self.rows, self.groups * self.width)
        return x[:, : self.depth].reshape(self.shape)

    def valid(self, used: jax.Array | None, mask: jax.Array | None) -> jax.Array | None:
        """Which values are real, broadcast against the blocks; None for all."""
        if used is not None:
            row = jax.lax.iota(jnp.int32, self.rows) < used * self._inner
            return row.reshape(self.rows, 1, 1)
        if mask is None or self.shape[: mask.ndim] != mask.shape:
            return None
        mask = mask.reshape(mask.shape + (1,) * (len(self.shape) - mask.ndim))
        return self.split(jnp.broadcast_to(mask, self.shape))

    def send(self, a: jax.Array | None, used: jax.Array | None):
        """One number per grid, as it crosses: flat, or by row of a `Sized`."""
        if a is None or used is None or not self.axis:
            return None if a is None else a.reshape(-1)
        return first_rows(a.reshape(self.shape[0], self._inner * self.groups), used)

    def receive(self, a) -> jax.Array:
        """Undoes `send`; broadcasts against the blocks."""
        a = a.buffer if is_sized(a) else a
        if self.axis:
            return a.reshape(self.rows, self.groups, 1)
        return a.reshape(1, self.groups, self.width)

    @property
    def _inner(self) -> int:
        """Rows of the last axis in one row of the first."""
        return self.rows // max(1, self.shape[0])


def first_rows(rows: jax.Array, used: jax.Array) -> Sized:
    """A `Sized` of the first rows; the others become zero.

    Example:
      >>> import jax.numpy as jnp
      >>> first_rows(jnp.ones((3, 1)), jnp.int32(2)).buffer[:, 0].tolist()
      [1.0, 1.0, 0.0]
    """
    row = jax.lax.iota(jnp.int32, rows.shape[0]) < used
    row = row.reshape(rows.shape[0], *[1] * (rows.ndim - 1))
    return Sized(jnp.where(row, rows, jnp.zeros_like(rows)), used)
