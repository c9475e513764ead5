"""Floats cross as whole numbers of 2 to 8 bits on a grid."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.codecs.grid import HUGE, Grid, bits_of, extent, fit, values
from splitjax.codecs.layout import Layout, first_rows
from splitjax.codecs.pack import pack_bits, unpack_bits
from splitjax.core.codec import Codec
from splitjax.core.keys import fold
from splitjax.core.lift import counted
from splitjax.core.message import is_sized
from splitjax.core.noise import dither
from splitjax.core.tree import nearest

AXES, MODES = ("token", "channel", "group"), ("affine", "symmetric")
ROUNDINGS = ("nearest", "stochastic")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """What crosses for one array.

    Attributes:
      codes: uint8 `[..., bytes of a row]`, `Sized` as the input is; see
        `Layout.packing`. (Not flattened: on a CPU the reshape would be fused into the
        packing and make it slow.)
      step: bfloat16 or int8 `[number of grids]`; see `Grid`. Sized like the codes when
        the rows have grids of their own.
      low: like step, or None.
      shape: of the array.
      dtype: of the array.
    """

    codes: Any
    step: Any
    low: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})


def quantize(
    bits: int,
    *,
    axis: str = "token",
    group: int = 64,
    mode: str = "affine",
    rounding: str = "nearest",
    power_of_two: bool = False,
) -> Codec:
    """Sends each float as the number of a point on a grid: `x' = low + code * step`.

    `|x - x'| <= step / 2` (`< step` when stochastic), plus the rounding of x's own
    dtype. Step and low are bfloat16 and a code has at most 8 bits, so `code * step` is
    exact in float32 and the sum is rounded once: all devices decode equal numbers.

    NaN, infinity and magnitudes above 2^126 are replaced by zero before the grid is
    fitted, so that one does not spoil its row, and counted: see `nonfinite`.

    Args:
      bits: 2 to 8 for each code; they are packed.
      axis: what shares a grid: "token" a row of the last axis, "channel" all that has
        one index on the last axis (padding left out, where `ctx.mask` or a `Sized`
        tells), "group" `group` neighbors in a row (the last ones may be fewer).
      group: values of a group.
      mode: "affine" from the least to the greatest value, or "symmetric" around zero
        (zeros stay zeros; no `low` is sent).
      rounding: "nearest", or "stochastic" (needs `ctx.key`; the mean of x' is x,
        to 2^-16 of a step).
      power_of_two: steps are powers of two, sent as int8 exponents: up to twice as
        coarse, and sums of what was decoded stay on the grid.

    Returns:
      A rough codec; its state is `{"nonfinite": int32}`. Any float dtype is restored.
      Rows of a `Sized` are packed into whole bytes each, and other arrays flat.

    Raises:
      ValueError: for an argument that is none of these, and on use when stochastic
        rounding has no key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from splitjax.core.codec import Context, wire_bytes
      >>> codec = quantize(4)
      >>> x = jnp.array([[0.0, 0.5, 1.0, 15.0]])
      >>> message, state = codec.encode(x, codec.init(x), Context())
      >>> codec.decode(message, state)[0].tolist()
      [[0.0, 0.0, 1.0, 15.0]]
      >>> wire_bytes(codec, jax.ShapeDtypeStruct((32, 768), jnp.float32))
      12416

    Reference:
      B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference", 2018, arXiv:1712.05877, eq. (1).

    Differs:
      The grid's lowest value is a float, not a whole number of steps.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"quantize(bits={bits}): bits must be 2 to 8")
    if group < 1:
        raise ValueError(f"quantize(group={group}): a group has at least 1 value")
    for name, given, known in (
        ("axis", axis, AXES),
        ("mode", mode, MODES),
        ("rounding", rounding, ROUNDINGS),
    ):
        if given not in known:
            near = nearest(given, known)
            raise ValueError(f"quantize has no {name}={given!r}: {near}")
    affine, how = mode == "affine", {"axis": axis, "group": group}
    levels = 2**bits - 1 if affine else 2 ** (bits - 1) - 1

    def encode(x, used, ctx, index, constants):
        layout = Layout.of(x.shape, sized=used is not None, **how)
        valid = layout.valid(used, ctx.mask)
        # Where rows have grids of their own, those of unused rows are left out at last.
        shared = None if layout.axis else valid

        def extent_of(x):
            blocks = layout.split(x).astype(jnp.float32)
            return extent(blocks, layout.axis, valid=shared)

        def repair(x, ends):
            bad = ~_good(x)
            if valid is not None:
                bad = layout.merge(layout.split(bad) & valid)
            return extent_of(_clean(x)), jnp.sum(bad, dtype=jnp.int32)

        # A non-finite value shows in the ends. To count them takes as long as all the
        # rest, so that is done only when there is one.
        ends = extent_of(x)
        clean = jnp.all(_good(ends[0]) & _good(ends[1]))
        ends, bad = jax.lax.cond(
            clean, lambda x, ends: (ends, jnp.int32(0)), repair, x, ends
        )
        grid = fit(ends, levels, affine=affine, power_of_two=power_of_two)
        step, low = values(grid)
        lowest = 0 if affine else -levels

        def numbers(x, step, low, *, clean):
            place = layout.split(x if clean else _clean(x)).astype(jnp.float32)
            if shared is not None:  # padding may hold anything, and none of it crosses
                place = jnp.where(shared, place, 0.0)
            place = (place if low is None else place - low) * (1 / step)
            place = jnp.clip(place, lowest, levels)
            if rounding == "nearest":
                # The sum's unit is 1, so that the sum is rounded as the place would be,
                # to the even one of two, and its bits end in the number's own.
                # (Rounding and converting take four times as long.)
                codes = bits_of(place + 1.5 * 2.0**23) + jnp.uint32(-lowest)
                return layout.merge(codes.astype(jnp.uint8))
            key = fold(ctx.key, "quantize", index)
            if key is None:
                raise ValueError("stochastic rounding needs a key: Context(key=...)")
            noise = dither(key, layout.rows, layout.groups * layout.width)
            # Between 256 and 512 the unit is 2^-15: 15 bits of noise carry the rest.
            codes = bits_of(place + float(256 - lowest))
            codes = (codes + (noise.reshape(place.shape) >> 17)) >> 15
            return layout.merge(codes.astype(jnp.uint8))

        # What a branch returns is a buffer. XLA would fuse the codes into their
        # packing, and take two to six times as long on a CPU.
        ways = (functools.partial(numbers, clean=way) for way in (True, False))
        codes = jax.lax.cond(clean, *ways, x, step, low)
        codes = pack_bits(codes.reshape(layout.packing(bits)), bits)
        step, low = (layout.send(a, used) for a in grid)
        if used is not None:
            codes = first_rows(codes, used)
        return Quantized(codes, step, low, x.shape, x.dtype.name), bad

    def decode(node, constants):
        used = node.codes.used if is_sized(node.codes) else None
        layout = Layout.of(node.shape, sized=used is not None, **how)
        *_, width = layout.packing(bits)
        packed = node.codes if used is None else node.codes.buffer
        codes = unpack_bits(packed, bits, width)
        codes = layout.split(codes.reshape(node.shape)).astype(jnp.int32)
        low = None if node.low is None else layout.receive(node.low)
        step, low = values(Grid(layout.receive(node.step), low))
        if low is not None:
            x = low + codes.astype(jnp.float32) * step
        else:
            x = (codes - levels).astype(jnp.float32) * step
        top = float(jnp.finfo(node.dtype).max)
        if top < HUGE:  # the grid may end one step beyond the dtype's last number
            x = jnp.clip(x, -top, top)
        if used is None:
            return layout.merge(x).astype(node.dtype)
        return first_rows(layout.merge(x).astype(node.dtype), used)

    name = f"quantize({bits},{axis}{group if axis == 'group' else ''},{mode},{rounding}"
    name += ",power_of_two)" if power_of_two else ")"
    return dataclasses.replace(counted(encode, decode, name=name), exact=True)


def _good(x: jax.Array) -> jax.Array:
    if float(jnp.finfo(x.dtype).max) <= HUGE:
        return jnp.isfinite(x)
    return jnp.abs(x) <= HUGE  # false for a NaN


def _clean(x: jax.Array) -> jax.Array:
    return jnp.where(_good(x), x, jnp.zeros_like(x))
