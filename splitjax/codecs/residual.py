"""Layers that keep a compressed input for their backward pass."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from splitjax.codecs.exact_mask import when_there
from splitjax.core.codec import Codec, Context
from splitjax.core.message import tree_bytes
from splitjax.core.residuals import strip
from splitjax.core.tap import BOUND, Noise, bound_of
from splitjax.core.tree import Tree, is_float, path_name, spec_of

Layer = Callable[[Tree, jax.Array], jax.Array]


def compress_residuals(
    layer: Layer, codec: Codec | Callable[[jax.Array], Codec]
) -> Layer:
    """A layer whose backward pass knows its input only as a codec left it.

    `y = layer(params, x)` as before. Kept are the parameters, which live anyway, and
    the message of x. Backward, x' is decoded from it: the gradient of x does not depend
    on x where the layer is linear in it, and is exact; that of the parameters is taken
    at x'. With errors that are uniform in [-eb, eb] on the nonzero part R of x and 0
    elsewhere, each entry of a kernel's gradient is off by noise of

      sigma = eb * sqrt(R * sum(g^2) / 3)

    with g the gradient of y, summed over batch and positions.

    A leaf "tap_bound" beside the parameters (see `core.tap.tap_bound`) holds a bound
    that may change from step to step: the codec is then a function of it. Its cotangent
    is `core.tap.Noise`, from which `optim.adapt_bounds` finds the next bound.

    To save memory the message must be small inside the program: `fixed_width`,
    `quantize`, `cast`. (`bounded` is small in a frame only: its buffers are as large
    as its input.)

    Args:
      layer: `(params, x) -> y`, linear (or affine) in x, as dense layers and
        convolutions are; the last axis of y holds its channels.
      codec: a rough codec that needs no key, its state new in every call; or a function
        from a bound, a traced float32 scalar, to such a codec.

    Returns:
      A function as `layer`, of params that may hold a "tap_bound".

    Raises:
      ValueError: on use, when the layer is not linear in x, or the codec is a function
        and params have no "tap_bound".

    Example:
      >>> from splitjax.codecs.fixed_width import fixed_width
      >>> dense = lambda p, x: x @ p["kernel"]
      >>> small = compress_residuals(dense, fixed_width(0.01, 8))
      >>> p, x = {"kernel": jnp.ones((64, 8))}, jnp.ones((32, 64))
      >>> residual_bytes(dense, p, x), residual_bytes(small, p, x)
      (8192, 2324)

    Reference:
      S. Jin et al., "COMET: A Novel Memory-Efficient Deep Learning Training Framework
      by Using Error-Bounded Lossy Compression", 2021, arXiv:2111.09562.

    Differs:
      The compressed input takes a width that was decided before compiling, so nothing
      is saved by values that would need fewer bits. Only the inputs of wrapped layers
      shrink: what a norm keeps stays whole and exact, and a relu or a pool keeps a mask
      (`relu`, `max_pool`). The formula is exact for such noise; a rounding to a grid
      makes less of it, and a bias for values that become zero.
    """

    def made(params: Tree) -> Codec:
        if isinstance(codec, Codec):
            return codec
        if not _has_bound(params):
            raise ValueError(
                f"the codec is a function of a bound, and params hold no {BOUND!r}: "
                "put core.tap.tap_bound(eb) there"
            )
        return codec(bound_of(params[BOUND]))

    @jax.custom_vjp
    def run(params, x):
        return layer(_plain(params), x)

    def forward(params, x):
        y = run(params, x)
        _check_linear(layer, _plain(params), x, y)
        one = made(params)
        message, state = one.encode(x, one.init(spec_of(x)), Context())
        nonzero = jnp.sum(x != 0, dtype=jnp.float32)
        y = _after(message, y)
        return y, (params, message, nonzero, _count(state, "missed"))

    def backward(kept, g):
        params, message, nonzero, missed = kept

        def decode(message, g):
            return made(params).decode(message, made(params).init(None))[0]

        x = when_there(decode, message, g)
        _, pull = jax.vjp(layer, _plain(params), x)
        grads, dx = pull(g)
        if not _has_bound(params):
            return grads, dx
        wide = g.astype(jnp.float32)
        share = nonzero / max(1, dx.size)
        noise = Noise(
            log2=jnp.float32(0),
            squares=share * jnp.sum(wide * wide) / max(1, g.shape[-1]),
            gradient=jnp.sum(jnp.abs(wide)),
            gradients=jnp.float32(g.size),
            rows=jnp.float32(dx.shape[0]),
            nonzero=nonzero,
            values=jnp.float32(dx.size),
            missed=missed,
        )
        return {**grads, BOUND: jnp.stack(noise)}, dx

    run.defvjp(forward, backward)
    return run


def residual_bytes(function: Callable, params: Tree, *args: Tree) -> int:
    """Bytes that the backward pass of `function(params, *args)` keeps, but for params.

    Counted from shapes; the compiled program may keep less.

    Example: see `compress_residuals`.
    """

    def run(params, *args):
        _, pull = jax.vjp(function, params, *args)
        return strip(pull, params).leaves

    return tree_bytes(jax.eval_shape(run, params, *args))


def _after(message: Tree, y: jax.Array) -> jax.Array:
    """y, which waits until all of the message is there.

    Else XLA may keep the input, and encode it as late as it likes.
    """
    leaves = [jnp.isnan(a) if is_float(a) else a for a in jax.tree.leaves(message)]
    total = sum((jnp.sum(a.astype(jnp.float32)) for a in leaves), jnp.float32(0))
    # Always so, but only for who knows that it is no NaN.
    return jnp.where(total == total, y, jnp.zeros_like(y))


def _has_bound(params: Tree) -> bool:
    return isinstance(params, dict) and BOUND in params


def _plain(params: Tree) -> Tree:
    if not _has_bound(params):
        return params
    return {name: leaf for name, leaf in params.items() if name != BOUND}


def _count(state: Tree, name: str) -> jax.Array:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    found = [a for path, a in leaves if path_name(path[-1:]) == name]
    return sum(found, start=jnp.int32(0)).astype(jnp.float32)


def _check_linear(layer: Layer, params: Tree, x: jax.Array, y: jax.Array) -> None:
    def transpose(params, x, g):
        return jax.linear_transpose(partial(layer, params), x)(g)

    try:
        jax.eval_shape(transpose, params, x, y)
    except Exception as error:  # JAX has one for each way of not being linear
        raise ValueError(
            "compress_residuals takes a layer that is linear in its input; this one is "
            f"not, so the gradient that it passes on would not be exact: {error}"
        ) from error
