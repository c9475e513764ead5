"""Parameters of 16 bits, their optimizer in float32."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from splitjax.core.keys import fold
from splitjax.core.noise import hashed, words
from splitjax.core.tree import Tree, nearest, path_name

ROUNDINGS = ("stochastic", "nearest", "copy")


class MixedPrecisionState(NamedTuple):
    """State of `mixed_precision`.

    Attributes:
      inner: of the wrapped transformation, over float32 leaves.
      count: int32, updates so far; read where no step is given.
      copy: for "copy" the bfloat16 parameters in float32, and a `MaskedNode` for each
        leaf of another dtype; else ().
    """

    inner: Tree
    count: jax.Array
    copy: Tree


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """A bfloat16 next to x, above or below, whose mean is x to 2^-16 of their distance.

    The upper of the two is as likely as x is near to it: 16 bits of a hash are added to
    the 16 that go. NaN and infinity stay what they are.

    Args:
      x: float32 of any shape.
      key: a typed key; the noise depends on it and on a value's place.

    Example:
      >>> x = jnp.full(1000, 1 + 2.0**-9)  # a quarter of the way from 1 to 1 + 2^-7
      >>> y = round_stochastically(x, jax.random.key(0)).astype(jnp.float32)
      >>> sorted(set(y.tolist())), round(float((y > 1).mean()), 1)
      ([1.0, 1.0078125], 0.2)

    Reference:
      S. Gupta et al., Deep Learning with Limited Numerical Precision, 2015
      (arXiv:1502.02551), section 3.
    """
    place = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    moved = (bits + (hashed(place, *words(key)) >> 16)) & jnp.uint32(0xFFFF0000)
    moved = jax.lax.bitcast_convert_type(moved, jnp.float32)
    return jnp.where(jnp.isfinite(x), moved, x).astype(jnp.bfloat16)


def mixed_precision(
    inner: optax.GradientTransformation,
    *,
    rounding: str = "stochastic",
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Optimizes bfloat16 parameters: gradients, moments and the step are float32.

    Most steps are smaller than half the distance of a bfloat16 to the next (2^-9 of its
    size), and rounding to the nearest loses them all. Rounded stochastically they are
    taken in the mean, and no float32 copy of the parameters is kept: 2 bytes of a
    parameter and 8 of its moments, in the place of 14.

    Leaves of other dtypes are passed on as they are, so norms may stay float32.

    Args:
      inner: any transformation; it sees float32.
      rounding: "stochastic"; "nearest"; or "copy", the float32 parameters kept in the
        state, and rounded to the nearest for use. Where a parameter is not its copy's
        rounding (an average, a projection, a checkpoint), it counts, not the copy.
      key: a typed key; "stochastic" needs it. Noise is folded from it, the leaf's path
        and the step.

    Returns:
      A transformation that reads `step=` (without it, it counts its updates), and needs
      params. It comes last in a chain: its updates are differences of bfloat16s, and
      `optax.apply_updates` gives the rounded parameters.

    Raises:
      ValueError: for another rounding, or without a key; on update, without params.

    Example:
      >>> tx = mixed_precision(optax.sgd(1e-3), key=jax.random.key(0))
      >>> p = {"w": jnp.ones(4000, jnp.bfloat16)}
      >>> updates, _ = tx.update(p, tx.init(p), p)
      >>> round(float(updates["w"].astype(jnp.float32).mean()), 4)
      -0.001

    Reference:
      P. Micikevicius et al., Mixed Precision Training, 2017 (arXiv:1710.03740), for
      "copy"; Wang et al., LightSeq2, 2022 (arXiv:2110.05722), on the trainer, which
      keeps no float32 copy; S. Gupta et al., 2015 (arXiv:1502.02551), section 3.

    Differs:
      LightSeq's parameters are float16, rounded to the nearest. Where a step more than
      doubles or halves a parameter the difference is rounded to the nearest once more,
      and its copy begins anew from there.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding={rounding!r}: {nearest(rounding, ROUNDINGS)}")
    if rounding == "stochastic" and key is None:
        raise ValueError(
            "stochastic rounding needs a key: mixed_precision(tx, key=a typed key)"
        )
    inner = optax.with_extra_args_support(inner)

    def kept(params, wide):
        if rounding != "copy":
            return ()
        # Other leaves would be there twice, and no buffer can be donated twice.
        return jax.tree.map(
            lambda p, w: w if p.dtype == jnp.bfloat16 else optax.MaskedNode(),
            params,
            wide,
        )

    def init(params):
        wide = jax.tree.map(_wide, params)
        return MixedPrecisionState(inner.init(wide), jnp.int32(0), kept(params, wide))

    def update(updates, state, params=None, *, step=None, **extra):
        if params is None:
            raise ValueError("mixed_precision needs params: tx.update(g, state, p)")
        more = extra if step is None else {**extra, "step": step}
        wide = jax.tree.map(_wide, params)
        if rounding == "copy":
            wide = jax.tree.map(_newer, wide, state.copy)
        grads = jax.tree.map(_wide, updates)
        moves, after = inner.update(grads, state.inner, wide, **more)
        at = state.count if step is None else step
        new = jax.tree.map(jnp.add, wide, moves)

        def difference(path, p, new, move):
            if p.dtype != jnp.bfloat16:
                return move.astype(p.dtype)
            if rounding == "stochastic" and key is not None:
                one = fold(key, "mixed_precision", path_name(path), at)
                new = round_stochastically(new, one)
            else:
                new = _rounded(new)
            return (new.astype(jnp.float32) - _wide(p)).astype(jnp.bfloat16)

        made = jax.tree_util.tree_map_with_path(difference, params, new, moves)
        return made, MixedPrecisionState(after, state.count + 1, kept(params, new))

    return optax.GradientTransformationExtraArgs(init, update)


def _wide(leaf: Any) -> jax.Array:
    return leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf


def _newer(wide: jax.Array, copy: Any) -> jax.Array:
    if isinstance(copy, optax.MaskedNode):
        return wide
    return jnp.where(_rounded(copy) == wide, copy, wide)


def _rounded(wide: jax.Array) -> jax.Array:
    """float32 of the values of bfloat16; a pair of casts a compiler may leave out."""
    return jax.lax.reduce_precision(wide, exponent_bits=8, mantissa_bits=7)
