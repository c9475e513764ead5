"""Token and position embeddings, scaled, masked and dropped in one pass."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from splitjax.kernels.dropout import check_rate, kept, key_words
from splitjax.kernels.kernel import by_platform, check
from splitjax.kernels.launch import block
from splitjax.kernels.tile import Tile


def embed(
    ids: jax.Array,
    table: jax.Array,
    positions: jax.Array,
    *,
    mask: jax.Array | None = None,
    places: jax.Array | None = None,
    key: jax.Array | None = None,
    scale: float = 1.0,
    rate: float = 0.0,
    impl: str = "auto",
) -> jax.Array:
    """keep * (scale * table[id] + positions[place]) / (1 - rate), zero at padding.

    The backward pass has ids, places, the mask and the two words of the key; it adds
    rows up into the tables.

    Args:
      ids: (B, T) int. One outside of the table gives NaN (a negative one counts from
        its end).
      table: (V, D), of any float dtype.
      positions: (P, D); likewise.
      mask: (B, T) bool; False is padding, and its rows are zero. None: nothing is.
      places: (B, T) int, rows of `positions`. By default how many real tokens are
        before, so padding may be on either side.
      key: a typed key, folded with the name of this function; None at a rate of 0.
      scale: of the token's row.
      rate: of what is dropped, 0 to 1.
      impl: see `kernel.Kernel`; but on a TPU it is "xla" always.

    Returns:
      (B, T, D) in the dtype of `table`.

    Raises:
      ValueError: when shapes or dtypes do not fit, for a rate that is no probability,
        or without a key where one is needed.

    Example:
      >>> mask = jnp.array([[False, True, True]])
      >>> table, positions = jnp.eye(2), 10 * jnp.ones((3, 2)).cumsum(0)
      >>> embed(jnp.array([[0, 0, 1]]), table, positions, mask=mask).tolist()
      [[[0.0, 0.0], [11.0, 10.0], [20.0, 21.0]]]

    Reference:
      Wang et al., LightSeq2, 2022 (arXiv:2110.05722), on the embedding layer.

    Differs:
      LightSeq scales by sqrt(D) always, and adds gradients up by atomics in any order.
      On a TPU, where rows are fetched eight at a time, the gather is XLA's.
    """
    _check(ids, table, positions, mask, places, key, rate)
    check(impl)
    padded = mask is not None
    mask = jnp.ones(ids.shape, bool) if mask is None else mask
    if places is None and padded:
        places = jnp.maximum(jnp.cumsum(mask, 1, dtype=jnp.int32) - 1, 0)
    elif places is None:
        places = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    ids, places = ids.astype(jnp.int32), places.astype(jnp.int32)
    first, second = key_words(key, "embed", rate)
    arrays = (ids, places, mask, first, second)
    return _embed(table, positions, *arrays, float(scale), float(rate), impl)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8, 9))
def _embed(table, positions, ids, places, mask, first, second, scale, rate, impl):
    arrays = (table, positions, ids, places, mask, first, second)
    twin = functools.partial(_twin, scale=scale, rate=rate)
    if not ids.size * table.size:
        return twin(*arrays)
    launched = functools.partial(_launch, scale=scale, rate=rate)
    return by_platform(
        impl,
        arrays,
        twin=twin,
        gpu=functools.partial(launched, interpret=False),
        tpu=twin,
        interpreted=functools.partial(launched, interpret=True),
    )


def _embed_fwd(table, positions, *more):
    # Of the tables the backward pass has dtypes and numbers of rows, and no values.
    like = [jnp.zeros((len(leaf), 0), leaf.dtype) for leaf in (table, positions)]
    return _embed(table, positions, *more), (like, *more[:5])


def _embed_bwd(scale, rate, impl, residuals, dy):
    del impl  # a scatter, which is XLA's
    like, ids, places, mask, first, second = residuals
    g = kept(Tile(dy.shape), dy.astype(jnp.float32), first, second, rate)
    g = jnp.where(mask[..., None], g, 0.0)

    def added(rows, leaf, g):
        sums = jnp.zeros((len(leaf), dy.shape[-1]), jnp.float32).at[rows].add(g)
        return sums.astype(leaf.dtype)

    made = added(ids, like[0], scale * g), added(places, like[1], g)
    return *made, None, None, None, None, None


_embed.defvjp(_embed_fwd, _embed_bwd)


def _twin(table, positions, ids, places, mask, first, second, *, scale, rate):
    token = jnp.take(table, ids, axis=0).astype(jnp.float32)
    place = jnp.take(positions, places, axis=0).astype(jnp.float32)
    y = kept(Tile(token.shape), scale * token + place, first, second, rate)
    return jnp.where(mask[..., None], y, 0.0).astype(table.dtype)


def _launch(
    table, positions, ids, places, mask, first, second, *, scale, rate, interpret
):
    """A program for each token and part of its row, which fetches both rows itself."""
    n, w = ids.size, table.shape[-1]
    _, c = block("triton", 1, w, parted=True) or (1, 1)  # a parted row always fits

    def program(ids, places, mask, first, second, table, positions, y):
        i, j = pl.program_id(0), pl.program_id(1)
        column = jax.lax.broadcasted_iota(jnp.int32, (1, c), 1) + j * c
        inside = column < w

        def row(ref, number):
            rows = ref.shape[0]
            number = jnp.where(number < 0, number + rows, number)
            there = (number >= 0) & (number < rows)
            at = ref.at[pl.ds(jnp.where(there, number, 0), 1), pl.ds(j * c, c)]
            zero = jnp.zeros((), ref.dtype)
            found = triton.load(at, mask=inside, other=zero).astype(jnp.float32)
            return jnp.where(there, found, jnp.nan)

        tile = Tile((n, w), jnp.full((1, 1), i), column, (False, w % c != 0))
        new = scale * row(table, ids[i]) + row(positions, places[i])
        new = kept(tile, new, first[0], second[0], rate)
        new = jnp.where(mask[i] != 0, new, 0.0).astype(y.dtype)
        triton.store(y.at[pl.ds(i, 1), pl.ds(j * c, c)], new, mask=inside)

    flat = [a.reshape(-1) for a in (ids, places, mask.astype(jnp.int32), first, second)]
    params: Any = triton.CompilerParams(num_warps=4)
    made = pl.pallas_call(
        program,
        grid=(n, pl.cdiv(w, c)),
        out_shape=jax.ShapeDtypeStruct((n, w), table.dtype),
        compiler_params=params,
        interpret=interpret,
        name="embed",
    )(*flat, table, positions)
    return made.reshape(*ids.shape, w)


def _check(ids, table, positions, mask, places, key, rate):
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"embed reads integers (B, T): {ids.dtype} {ids.shape}")
    for name, leaf in (("table", table), ("positions", positions)):
        if leaf.ndim != 2 or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"embed: {name} is floats, of two axes: {leaf.dtype} {leaf.shape}"
            )
    if table.shape[1] != positions.shape[1]:
        raise ValueError(
            f"embed adds rows of one width: {table.shape} and {positions.shape}"
        )
    for name, leaf in (("mask", mask), ("places", places)):
        if leaf is not None and leaf.shape != ids.shape:
            raise ValueError(f"embed: {name} is {ids.shape}, as ids: {leaf.shape}")
    check_rate("embed", key, rate)
