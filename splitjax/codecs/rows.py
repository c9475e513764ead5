"""An array as rows of which a few values each cross."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.codecs.finite import count, real, within
from splitjax.codecs.grid import HUGE
from splitjax.codecs.layout import first_rows
from splitjax.core.message import Sized, is_sized
from splitjax.core.tree import nearest

AXES = ("token", "example", "all")


@dataclasses.dataclass(frozen=True)
class Rows:
    """An array as `[rows, n]`; k values of each row are kept.

    Attributes:
      shape: of the array, or of the buffer of a `Sized`.
      lead: the leading axes of the array, which number the rows.
      n: values of a row.
      k: how many are kept.

    Example:
      >>> rows = Rows.of((2, 3, 50), 0.1, "token")
      >>> rows.lead, rows.n, rows.k
      ((2, 3), 50, 5)
    """

    shape: tuple[int, ...]
    lead: tuple[int, ...]
    n: int
    k: int

    @classmethod
    def of(cls, shape: tuple[int, ...], keep: float, axis: str, *, sized: bool = False):
        """The rows along one of `AXES`, with `keep` values, or that part, of each."""
        if axis == "all" and sized:
            raise ValueError(
                "axis='all' has no fixed count of values for an array of which only "
                "some rows cross (a Sized leaf, as ragged makes it): take "
                "axis='token' or 'example'"
            )
        depth = {"token": max(len(shape) - 1, 0), "example": 1, "all": 0}[axis]
        depth = max(depth, int(sized))
        lead = shape[:depth]
        n = math.prod(shape[depth:])
        k = round(keep * n) if isinstance(keep, float) else keep
        return cls(shape, lead, n, min(max(k, 1), n))

    def clear(
        self, x: jax.Array, used: jax.Array | None, mask: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """The array with zeros in its padding, and how many values are not finite.

        What is padding the mask says, or `used`.
        """
        valid = real(self.shape, mask)
        if used is not None:
            row = jax.lax.iota(jnp.int32, self.shape[0]) < used
            valid = row.reshape(-1, *[1] * (len(self.shape) - 1))
        bad = ~within(x, HUGE)
        if valid is not None:
            bad &= valid
            x = jnp.where(valid, x, jnp.zeros_like(x))
        return x, count(bad)

    @property
    def count(self) -> int:
        """How many rows."""
        return math.prod(self.lead)

    def send(self, a: jax.Array, used: jax.Array | None) -> Any:
        """Some numbers for each row `[rows, m]`, as they cross: `[*lead, m]`."""
        a = a.reshape(*self.lead, a.shape[-1])
        return a if used is None else first_rows(a, used)

    def receive(self, a: Any) -> jax.Array:
        """Undoes `send`."""
        a = a.buffer if is_sized(a) else a
        return a.reshape(self.count, a.shape[-1])

    def merge(self, rows: jax.Array, used: jax.Array | None) -> jax.Array | Sized:
        """The array of all its rows `[rows, n]`."""
        x = rows.reshape(self.shape)
        return x if used is None else first_rows(x, used)


def check_keep(name: str, keep: float, axis: str) -> None:
    """Refuses a part, a count or an axis that is none.

    Example:
      >>> check_keep("top_k", 0.1, "token")
    """
    if axis not in AXES:
        raise ValueError(f"{name} has no axis={axis!r}: {nearest(axis, AXES)}")
    if isinstance(keep, bool) or not isinstance(keep, int | float):
        raise ValueError(f"{name}({keep!r}): a part (float) or a count (int) is needed")
    if isinstance(keep, float) and not 0 < keep <= 1:
        raise ValueError(f"{name}({keep}): a part lies above 0 and is at most 1")
    if isinstance(keep, int) and keep < 1:
        raise ValueError(f"{name}({keep}): at least 1 value is kept")
