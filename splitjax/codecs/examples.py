"""Which rows of a message are of which example."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.codecs.finite import clearly_within
from splitjax.codecs.grid import HUGE
from splitjax.codecs.layout import first_rows
from splitjax.codecs.ragged import Ragged, places
from splitjax.core.memory import Memory
from splitjax.core.message import Sized, is_sized
from splitjax.core.tree import Tree, is_float, path_name


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gap:
    """Stands where a float array was taken out of a tree.

    Attributes:
      shape: of the array, or of the buffer of a `Sized`.
      dtype: of the array.
      tokens: whether its rows are tokens, as `ragged` packs them.
    """

    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})
    tokens: bool = dataclasses.field(metadata={"static": True})

    def remembered(self, count: int) -> tuple[int, ...]:
        """The shape of what is remembered of it, float32; a scalar has a last axis."""
        inner = self.shape[1:]
        lead = (count, self.shape[0] // max(count, 1)) if self.tokens else (count,)
        return (*lead, *(inner or (1,)))

    @property
    def spec(self) -> Sized:
        """As the inner codec takes it: the chosen rows, in float32."""
        array = jax.ShapeDtypeStruct(self.shape, jnp.float32)
        return Sized(array, jax.ShapeDtypeStruct((), jnp.int32))

    def restore(self, value: jax.Array) -> jax.Array:
        """A float32 array in the dtype that it had."""
        top = float(jnp.finfo(self.dtype).max)
        if top < HUGE:  # a sum may end beyond the dtype's last number
            value = jnp.clip(value, -top, top)
        return value.astype(self.dtype)


def is_gap(node: Any) -> bool:
    """Tells whether a node is a `Gap`.

    Example:
      >>> is_gap(Gap((2,), "float32", False))
      True
    """
    return isinstance(node, Gap)


def take_out(x: Tree) -> tuple[Tree, tuple[Gap, ...], list[Any]]:
    """Parts a tree (arrays or specs) into what has rows of examples, and the rest.

    Float arrays `[B, ...]` have one row for each example; in a message of `ragged` a
    `Sized` has its tokens. Integers and 0-d floats stay.

    Returns:
      The rest with gaps, the gaps, and what was in them: arrays.

    Raises:
      ValueError: where it cannot be told whose a row is.

    Example:
      >>> import jax.numpy as jnp
      >>> rest, gaps, arrays = take_out({"h": jnp.ones((2, 3)), "n": jnp.arange(2)})
      >>> gaps[0].shape, [a.shape for a in arrays], rest["n"].shape
      ((2, 3), [(2, 3)], (2,))
    """
    packed = x.lengths if isinstance(x, Ragged) else None
    count = None if packed is None else packed.shape[0]
    nodes, treedef = jax.tree_util.tree_flatten_with_path(x, is_leaf=is_sized)
    rest, gaps, arrays = [], [], []
    for path, node in nodes:
        array = node.buffer if is_sized(node) else node
        if not is_float(array) or not array.shape:
            rest.append(node)
            continue
        tokens = is_sized(node)
        if tokens and packed is None:
            raise ValueError(
                f"delta cannot tell whose rows {path_name(path)!r} has: it takes "
                "arrays [B, ...], or what ragged() packed, with its lengths"
            )
        if not tokens:
            count = array.shape[0] if count is None else count
            if array.shape[0] != count:
                raise ValueError(
                    f"delta takes arrays [B, ...] with one row for each of B={count} "
                    f"examples; {path_name(path)!r} has shape {list(array.shape)}"
                )
        gap = Gap(tuple(array.shape), jnp.dtype(array.dtype).name, tokens)
        rest.append(gap)
        gaps.append(gap)
        arrays.append(array)
    return jax.tree.unflatten(treedef, rest), tuple(gaps), arrays


def put_in(rest: Tree, arrays: list[jax.Array]) -> Tree:
    """Undoes `take_out`."""
    left = iter(arrays)
    used: Any = None
    if isinstance(rest, Ragged):
        used = jnp.sum(rest.lengths.astype(jnp.int32))

    def one(node):
        if not is_gap(node):
            return node
        array = next(left)
        return first_rows(array, used) if node.tokens else array

    return jax.tree.map(one, rest, is_leaf=lambda n: is_gap(n) or is_sized(n))


def gaps_of(rest: Tree) -> tuple[Gap, ...]:
    """The gaps that `take_out` left."""
    return tuple(g for g in jax.tree.leaves(rest, is_leaf=is_gap) if is_gap(g))


def count_of(rest: Tree, gaps: tuple[Gap, ...]) -> int:
    """How many examples a batch has, B; 0 where no array has rows of any."""
    lengths = rest.lengths if isinstance(rest, Ragged) else None
    if lengths is not None:
        return lengths.shape[0]
    return gaps[0].shape[0] if gaps else 0


class Rows:
    """The rows of a batch's examples: from one for each example to one for each token.

    Args:
      rest: a tree with gaps; its lengths are read.
      gaps: of that tree.
      count: of examples, B.
    """

    def __init__(self, rest: Tree, gaps: tuple[Gap, ...], count: int):
        self.count = count
        self.lengths = jnp.zeros((count,), jnp.int32)
        tokens = [gap.shape[0] for gap in gaps if gap.tokens]
        self._steps = tokens[0] // max(count, 1) if tokens else 0
        if tokens:
            self.lengths = rest.lengths.astype(jnp.int32)
            self._there, self._back = places(self.lengths, self._steps)
            step = jax.lax.iota(jnp.int32, self._steps)[None]
            self._real = step < self.lengths[:, None]

    def flags(self, gap: Gap, of_examples: jax.Array) -> jax.Array:
        """Flags of examples, for the rows of an array."""
        if not gap.tokens:
            return of_examples
        flags = (of_examples[:, None] & self._real).reshape(-1)
        return jnp.take(flags, self._back, mode="fill", fill_value=False)

    def line_up(self, gap: Gap, padded: jax.Array) -> jax.Array:
        """What is remembered, in the order and shape of an array's rows."""
        if gap.tokens:
            rows = padded.reshape(gap.shape[0], *padded.shape[2:])
            padded = jnp.take(rows, self._back, axis=0, mode="fill", fill_value=0)
        return padded.reshape(gap.shape)

    def pad(self, gap: Gap, rows: jax.Array) -> jax.Array:
        """Undoes `line_up`; padding is zero."""
        if gap.tokens:
            rows = jnp.take(rows, self._there, axis=0, mode="fill", fill_value=0)
        return rows.reshape(gap.remembered(self.count))


def in_front(rows: jax.Array, chosen: jax.Array, *, still: bool = False) -> Sized:
    """The chosen rows alone, in order; still: they are known to be in front already.

    Example:
      >>> import jax.numpy as jnp
      >>> sized = in_front(jnp.array([1, 2, 3]), jnp.array([False, True, True]))
      >>> sized.buffer.tolist(), int(sized.used)
      ([2, 3, 0], 2)
    """
    size = chosen.shape[0]
    place, ordered = _places(chosen)
    row = jax.lax.iota(jnp.int32, size)

    def move(rows):
        source = jnp.full((size,), size, jnp.int32).at[place].set(row, mode="drop")
        return jnp.take(rows, source, axis=0, mode="fill", fill_value=0)

    if not still:  # mostly all are chosen, or none
        rows = jax.lax.cond(ordered, lambda rows: rows, move, rows)
    return first_rows(rows, jnp.sum(chosen, dtype=jnp.int32))


def back_in_place(front: Sized, chosen: jax.Array, *, still: bool = False) -> jax.Array:
    """Undoes `in_front`; the other rows are zero."""
    place, ordered = _places(chosen)

    def move(rows):
        return jnp.take(rows, place, axis=0, mode="fill", fill_value=0)

    rows = front.buffer
    if not still:
        rows = jax.lax.cond(ordered, lambda rows: rows, move, rows)
    return jnp.where(like(chosen, rows), rows, jnp.zeros_like(rows))


def count_bad(array: jax.Array, real: jax.Array) -> jax.Array:
    """How many values of real rows are not finite, or above `HUGE`: int32.

    Example:
      >>> import jax.numpy as jnp
      >>> int(count_bad(jnp.array([[1.0, jnp.nan], [jnp.inf, 0.0]]), jnp.ones(2, bool)))
      2
    """

    def count(array):
        good = jnp.abs(array.astype(jnp.float32)) <= HUGE  # false for a NaN
        return jnp.sum(like(real, array) & ~good, dtype=jnp.int32)

    # To count takes as long as all the rest: it is done when there may be one.
    none = clearly_within(array)
    return jax.lax.cond(none, lambda array: jnp.int32(0), count, array)


def as_they_stand(still: jax.Array, run: Callable, *args: Any) -> Any:
    """`run(*args, still=...)`, as a program of its own where no row has to be moved.

    Most batches have no new example, and to move rows, or to look whether one moves,
    takes longer than all the rest.

    Args:
      still: bool scalar.
      run: takes `still` as a Python bool.
      *args: for run.

    Example:
      >>> import jax.numpy as jnp
      >>> run = lambda x, still: x if still else x[::-1]
      >>> as_they_stand(jnp.bool(False), run, jnp.arange(3)).tolist()
      [2, 1, 0]
    """
    ways = (functools.partial(run, still=way) for way in (True, False))
    return jax.lax.cond(still, *ways, *args)


def like(flags: jax.Array, rows: jax.Array) -> jax.Array:
    """Flags of rows, to be broadcast against them.

    Example:
      >>> import jax.numpy as jnp
      >>> like(jnp.ones(2, bool), jnp.ones((2, 3, 4))).shape
      (2, 1, 1)
    """
    return flags.reshape(flags.shape[0], *[1] * (rows.ndim - 1))


def _places(chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each row's place in front, and whether all are there already."""
    size = chosen.shape[0]
    place = jnp.where(chosen, jnp.cumsum(chosen, dtype=jnp.int32) - 1, size)
    row = jax.lax.iota(jnp.int32, size)
    return place, jnp.all(~chosen | (place == row))


def digest(memory: Memory) -> jax.Array:
    """A number for what is remembered of each example; zeros do not count.

    A sum modulo 2^32 of hashes of each value's bits and place, and of the visits: the
    same in any order of summing, and whatever padding follows.

    Returns:
      uint32 `[B]`.
    """
    total = memory.visits.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
    for number, array in enumerate(memory.rows):
        kind = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
        bits = bits.reshape(array.shape[0], math.prod(array.shape[1:]))
        place = jax.lax.iota(jnp.uint32, bits.shape[1])[None] * 2
        # An odd factor loses no bit, and a zero stays one.
        x = bits * ((place + jnp.uint32(2 * number + 1)) * jnp.uint32(0x846CA68B))
        x = (x ^ (x >> 15)) * jnp.uint32(0x7FEB352D)
        x = x ^ (x >> 13)
        total = total + jnp.sum(x, 1, dtype=jnp.uint32)
    return total
