"""What K-FAC collects of a layer: its inputs, and the gradients of its outputs."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.core.matrix import matrix_shape
from splitjax.core.tree import Tree, path_name

TAPS = "tap_kfac"
REDUCTIONS = ("mean", "expand")
EXACT = jax.lax.Precision.HIGHEST
CONV = 4  # axes of a kernel, beside which a dense one has 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Taps:
    """The node "tap_kfac" beside a kernel: zeros whose cotangents are two sums.

    With one example's row a (its inputs and a trailing 1, whether or not there is a
    bias) and g (the gradient of its outputs): `tap_a` becomes the sum of a a^T over the
    examples and `tap_g` that of g g^T. Both are sums, so those of micro-batches add up,
    and the last entry of `tap_a` counts the examples.

    A last entry that is not 0 in params says that nothing is to be collected: the
    cotangent is then 0, and costs nothing.

    Attributes:
      tap_a: (..., I + 1, I + 1) float32.
      tap_g: (..., J, J) float32.
      reduce: what a row is where an example has several (tokens). "mean": the mean of
        its inputs, and the sum of its gradients. "expand": each is a row, and counts
        1 / (how many) of an example.
    """

    tap_a: jax.Array
    tap_g: jax.Array
    reduce: str = dataclasses.field(default="mean", metadata={"static": True})


def watch(
    layer: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    taps: Taps | None,
    patches: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """`layer(x)`, and for K-FAC what goes in and the gradient of what comes out.

    Args:
      layer: affine in x (..., I), which is (B, I) or (B, T, I).
      x: its input.
      taps: beside the layer's kernel; None where nothing is collected.
      patches: of a convolution: x to the windows (B, H', W', I H W) that it multiplies,
        in the order of `core.matrix.as_matrix`; they are rows as "expand" has them.

    Example:
      >>> params = with_taps({"kernel": jnp.ones((2, 1))})
      >>> def loss(p, x):
      ...     return watch(lambda x: x @ p["kernel"], x, p[TAPS]).sum()
      >>> found = jax.grad(loss)(params, jnp.array([[1.0, 2.0], [3.0, 4.0]]))[TAPS]
      >>> found.tap_a.tolist(), found.tap_g.tolist()
      ([[10.0, 14.0, 4.0], [14.0, 20.0, 6.0], [4.0, 6.0, 2.0]], [[2.0]])
    """
    if taps is None:
        return layer(x)
    if x.ndim < 2:
        raise ValueError(f"an input {x.shape} has no examples: the first axis is B")
    reduce = "expand" if patches else taps.reduce
    x = _watched(partial(_of_inputs, reduce, patches), True, x, taps.tap_a)
    return _watched(partial(_of_outputs, reduce), False, layer(x), taps.tap_g)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _watched(statistic: Callable, keep: bool, y: jax.Array, leaf: jax.Array):
    """y; the cotangent of `leaf` is `statistic(y if keep else None, g)`."""
    return y


def _forward(statistic, keep, y, leaf):
    return y, (y if keep else None, leaf[-1, -1])


def _backward(statistic, keep, kept, g):
    y, mark = kept
    shape = jax.eval_shape(statistic, y, g).shape

    def nothing(y, g):
        # Zeros that vary over a mesh as the statistic does.
        zero = jnp.where(jnp.any(g == 0) & (mark == 0), 0.0, 0.0)
        return jnp.broadcast_to(jnp.expand_dims(zero, (0, 1)), shape)

    return g, jax.lax.cond(mark == 0, statistic, nothing, y, g)


_watched.defvjp(_forward, _backward)


def _of_inputs(reduce: str, patches: Callable | None, x: jax.Array, _g) -> jax.Array:
    """Sum of a a^T, float32."""
    x = x.astype(jnp.float32)
    rows, weight = _rows(patches(x) if patches else x, reduce, jnp.mean)
    rows = jnp.concatenate([rows, jnp.ones((len(rows), 1), rows.dtype)], 1)
    return weight * jnp.matmul(rows.T, rows, precision=EXACT)


def _of_outputs(reduce: str, _y, g: jax.Array) -> jax.Array:
    """Sum of g g^T, float32."""
    rows, _ = _rows(g.astype(jnp.float32), reduce, jnp.sum)
    return jnp.matmul(rows.T, rows, precision=EXACT)


def _rows(x: jax.Array, reduce: str, join: Callable) -> tuple[jax.Array, float]:
    """(rows, width), and how much of an example each is."""
    many = math.prod(x.shape[1:-1])
    if reduce == "mean":
        return join(x.reshape(len(x), many, x.shape[-1]), 1), 1.0
    return x.reshape(-1, x.shape[-1]), 1 / max(many, 1)


def with_taps(
    params: Tree, pattern: str = ".*", *, reduce: str = "mean", largest: int = 4096
) -> Tree:
    """Params with a node "tap_kfac" beside each chosen kernel.

    A layer is a dict with an array "kernel": (I, J) or (H, W, I, J), maybe with one
    leading axis for a stack of equal layers that a scan runs.

    Args:
      params: dicts of arrays (or of specs); nodes that are there are replaced.
      pattern: a regular expression on the "/"-joined path of a kernel, full match.
      reduce: see `Taps`; for dense layers.
      largest: a layer with more inputs or outputs is left out, as a vocabulary is: its
        factors would be larger than the rest of the model.

    Raises:
      ValueError: for another `reduce`, or when no kernel is chosen.

    Example:
      >>> made = with_taps({"wi": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}})
      >>> made["wi"]["tap_kfac"].tap_a.shape, made["wi"]["tap_kfac"].tap_g.shape
      ((4, 4), (2, 2))
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce={reduce!r}: one of {REDUCTIONS}")
    chosen, seen = re.compile(pattern), []

    def visit(node, path):
        if not isinstance(node, Mapping):
            return node
        kernel: Any = node.get("kernel")
        made = {k: visit(v, f"{path}{k}/") for k, v in node.items() if k != TAPS}
        if getattr(kernel, "ndim", 0) < 2:  # a factor is no array
            return made
        *lead, inputs, outputs = kernel_shape(kernel.shape)
        seen.append(f"{path}kernel {tuple(kernel.shape)}")
        if max(inputs, outputs) > largest or not chosen.fullmatch(f"{path}kernel"):
            return made
        found.append(path)
        a = jnp.zeros((*lead, inputs + 1, inputs + 1), jnp.float32)
        g = jnp.zeros((*lead, outputs, outputs), jnp.float32)
        return {**made, TAPS: Taps(a, g, reduce)}

    found: list[str] = []
    made = visit(params, "")
    if not found:
        listing = "\n  ".join(seen) or "(there are no kernels)"
        raise ValueError(
            f"with_taps({pattern!r}, largest={largest}) chooses none of:\n  {listing}"
        )
    return made


def layout_of(shape: tuple[int, ...]) -> str:
    """The layout of a kernel, see `core.matrix.Rule`.

    Example:
      >>> layout_of((3, 3, 16, 32)), layout_of((6, 4, 8))
      ('conv', 'dense')
    """
    return "conv" if len(shape) >= CONV else "dense"


def kernel_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (I, J) of a kernel as a matrix; a stack has its axis before them.

    Example:
      >>> kernel_shape((3, 3, 16, 32)), kernel_shape((6, 4, 8))
      ((144, 32), (6, 4, 8))
    """
    if len(shape) not in (2, 3, CONV, CONV + 1):
        raise ValueError(
            f"a kernel {tuple(shape)}: K-FAC has factors for (I, J) and (H, W, I, J), "
            "with one leading axis at most; leave it out by the pattern"
        )
    return matrix_shape(shape, layout_of(shape))


def without_own(tree: Tree) -> Tree:
    """Puts None where K-FAC's taps stand; other taps stay.

    Example:
      >>> made = without_own(with_taps({"kernel": jnp.ones((1, 1)), "tap_b": 1.0}))
      >>> made["tap_b"], made["tap_kfac"].tap_a
      (1.0, None)
    """

    def one(path, leaf):
        return None if f"{TAPS}/" in path_name(path) else leaf

    return jax.tree_util.tree_map_with_path(one, tree)
