"""A function of tiles as a Pallas program: Triton on a GPU, Mosaic on a TPU."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as mosaic
from jax.experimental.pallas import triton

from splitjax.kernels.tile import Tile, erf

TARGETS = ("triton", "mosaic")
# Values of a tile: some registers for each thread, or a part of the vector memory.
VALUES = {"triton": 2**11, "mosaic": 2**17}
# Columns of a tile where a row may be parted, and the most of a row that may not be.
PART = 2**11
WIDEST = {"triton": 2**16, "mosaic": 2**15}
SUBLANES = 32  # rows come in multiples of this many on a TPU, of any dtype


def block(
    target: str, rows: int, columns: int, *, parted: bool
) -> tuple[int, int] | None:
    """Rows and columns of a tile; None where no tile holds a row that must be whole.

    Triton's are powers of two, so that they may hang over the array. Mosaic's have
    either all columns or a multiple of its lanes.

    Example:
      >>> block("triton", 7, 33, parted=False), block("mosaic", 7, 33, parted=False)
      ((8, 64), (7, 33))
      >>> block("triton", 8, 10**6, parted=False) is None
      True
    """
    width = min(columns, PART) if parted else columns
    if width > WIDEST[target]:
        return None
    if target == "triton":
        width = pl.next_power_of_2(width)
        height = max(VALUES[target] // width, 1)
        return min(height, pl.next_power_of_2(rows)), width
    height = max(VALUES[target] // width // SUBLANES, 1) * SUBLANES
    return min(height, rows), width


def launch(
    function: Callable[..., tuple],
    arrays: Sequence[jax.Array],
    reads: Sequence[str],
    makes: Sequence[str],
    dtypes: Sequence[Any],
    shape: tuple[int, ...],
    *,
    target: str,
    size: tuple[int, int],
    interpret: bool,
    name: str,
) -> tuple[jax.Array, ...]:
    """Runs a function on all tiles of an array; see `kernel.Kernel`.

    Args:
      function: of a `Tile` and a block of each array.
      arrays: by the kinds in `reads`.
      reads: the kinds of what is read.
      makes: of what is made.
      dtypes: likewise.
      shape: of the whole array (..., W).
      target: one of `TARGETS`.
      size: of a tile; see `block`.
      interpret: whether to run it by XLA operations, on any device.
      name: of the program.

    Example:
      >>> double = lambda tile, x: (2 * x,)
      >>> launch(double, [jnp.ones((2, 3))], ["each"], ["each"], [jnp.float32], (2, 3),
      ...     target="triton", size=(2, 4), interpret=True, name="double")[0].tolist()
      [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """
    n, w, (r, c) = math.prod(shape[:-1]), shape[-1], size
    flat = {"each": (n, w), "row": (n, 1), "column": (1, w), "one": (1, 1)}
    given = [a.reshape(flat[kind]) for a, kind in zip(arrays, reads, strict=True)]
    grid, over = (pl.cdiv(n, r), pl.cdiv(w, c)), (n % r != 0, w % c != 0)
    # What is summed over rows, or over columns, is so within a tile: one of each.
    results = {
        "each": ((n, w), pl.BlockSpec((r, c), lambda i, j: (i, j))),
        "row": ((grid[1], n, 1), pl.BlockSpec((None, r, 1), lambda i, j: (j, i, 0))),
        "column": ((grid[0], 1, w), pl.BlockSpec((None, 1, c), lambda i, j: (i, 0, j))),
    }
    inputs = {
        "each": results["each"][1],
        "row": pl.BlockSpec((r, 1), lambda i, j: (i, 0)),
        "column": pl.BlockSpec((1, c), lambda i, j: (0, j)),
        "one": pl.BlockSpec((1, 1), lambda i, j: (0, 0)),
    }
    # Mosaic's copies end at the array's edge by themselves.
    hang = over if target == "triton" else (False, False)
    params: Any = mosaic.CompilerParams(dimension_semantics=("parallel", "parallel"))
    if target == "triton":
        params = triton.CompilerParams(num_warps=4 if r * c <= VALUES[target] else 8)

    def program(*refs):
        row = jax.lax.broadcasted_iota(jnp.int32, (r, 1), 0) + pl.program_id(0) * r
        column = jax.lax.broadcasted_iota(jnp.int32, (1, c), 1) + pl.program_id(1) * c
        inside = {"row": row < n if hang[0] else None, "one": None}
        inside["column"] = column < w if hang[1] else None
        both = [m for m in (inside["row"], inside["column"]) if m is not None]
        inside["each"] = None
        for mask in both:
            mask = jnp.broadcast_to(mask, (r, c))
            known = inside["each"]
            inside["each"] = mask if known is None else known & mask
        own = {"erf": erf} if target == "triton" else {}
        tile = Tile((n, w), row, column, over, **own)
        blocks = [
            _load(ref, inside[kind])
            for ref, kind in zip(refs[: len(reads)], reads, strict=True)
        ]
        made = function(tile, *blocks)
        for ref, kind, new in zip(refs[len(reads) :], makes, made, strict=True):
            _store(ref, new.astype(ref.dtype), inside[kind])

    made = pl.pallas_call(
        program,
        grid=grid,
        in_specs=[inputs[kind] for kind in reads],
        out_specs=[results[kind][1] for kind in makes],
        out_shape=[
            jax.ShapeDtypeStruct(results[kind][0], dtype)
            for kind, dtype in zip(makes, dtypes, strict=True)
        ],
        compiler_params=params,
        interpret=interpret,
        name=name,
    )(*given)
    return tuple(_joined(kind, a, shape) for kind, a in zip(makes, made, strict=True))


def _load(ref: Any, mask: jax.Array | None) -> jax.Array:
    if mask is None:
        return ref[...]
    return triton.load(ref, mask=mask, other=jnp.zeros((), ref.dtype))


def _store(ref: Any, new: jax.Array, mask: jax.Array | None) -> None:
    if mask is None:
        ref[...] = new
    else:
        triton.store(ref, new, mask=mask)


def _joined(kind: str, made: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if kind == "each":
        return made.reshape(shape)
    if kind == "column":
        return made.sum((0, 1))
    return jnp.moveaxis(made[..., 0], 0, -1).reshape(*shape[:-1], -1)
