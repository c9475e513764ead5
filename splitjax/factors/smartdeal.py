"""SmartDeal: a kernel as sparse signed powers of two times small bases."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from splitjax.core.factor import Factor, register_factor
from splitjax.core.owners import owners
from splitjax.core.precision import widened
from splitjax.core.tree import is_float
from splitjax.factors.nested import Nested
from splitjax.factors.smartdeal_fit import decompose

MAX_ROWS = 192  # of a slice: a basis is that of 64 channels' 3x3 kernels
Theta = Callable[[jax.Array], jax.Array]
LOOP = {"iterations": 30, "min_exp": -8, "max_exp": 5, "retries": 10}


@register_factor
class SmartDeal(Factor):
    """A kernel as slices `codes (m, S) @ basis (S, S)`, n of them for each output.

    The codes are 0 or exactly `+-2^k`, as floats: a product with one is a shift. There
    is no saving of memory before `smartdeal_pack.pack`, nor of time without hardware
    that shifts: `dot` rebuilds the kernel.

    Attributes:
      codes: (..., J, n, m, S); leading axes are a batch.
      basis: (..., J, n, S, S).
      inputs: the kernel's axes before J: (I,), or (h, w, I) of a convolution.
      conv: whether a row of a slice is a row of a convolution's window.

    Example:
      >>> factor = fit(jnp.eye(6, 2), theta=0.1, span=2)
      >>> factor.codes.shape, factor.basis.shape, factor.spec.shape
      ((2, 1, 3, 2), (2, 1, 2, 2), (6, 2))
    """

    codes: jax.Array
    basis: jax.Array
    inputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    conv: bool = dataclasses.field(default=False, metadata={"static": True})

    closed = (
        "SmartDeal's codes are powers of two, not numbers of any size: it comes last; "
        "choose other leaves, or materialize this kernel first"
    )

    def materialize(self) -> jax.Array:
        """The dense kernel, `(..., I, J)` or `(..., h, w, I, J)`."""
        rows = jnp.matmul(self.codes, self.basis, precision=jax.lax.Precision.HIGHEST)
        *lead, outputs, _, _, _ = rows.shape
        size = math.prod(self.inputs)
        flat = rows.reshape(*lead, outputs, -1)[..., :size]
        if not self.conv:
            return jnp.swapaxes(flat, -2, -1).reshape(*lead, *self.inputs, outputs)
        height, width, channels = self.inputs
        window = flat.reshape(*lead, outputs, channels, height, width)
        return jnp.moveaxis(window, (-4, -3), (-1, -2))

    def dot(self, x: jax.Array) -> jax.Array:
        """`x (..., I)` times the rebuilt kernel."""
        if len(self.inputs) != 1:
            raise TypeError(
                f"a kernel with the input axes {self.inputs} has no dot: a convolution "
                "reads materialize(params)"
            )
        return Factor.dot(self, x)


def fit(
    kernel: jax.Array | Factor,
    *,
    theta: float | Theta,
    span: int = 3,
    layout: str = "dense",
    prune: float = 0.0,
    group: int = 32,
    **loop,
) -> Factor:
    """Codes and bases of a kernel, by `smartdeal_fit.decompose` for each slice.

    The inputs of one output, zero-padded, in rows of S make slices of at most 192 rows.
    Of another factor the arrays are encoded where a slice has more rows than a basis,
    those of more than three axes in layout "flat"; the others stay. The errors add:
    with W = A B and spectral norms, at most `|A| dB + |B| dA + dA dB`.

    Args:
      kernel: (..., I, J), or (..., h, w, I, J) for layout "conv".
      theta: what of the coefficients is smaller becomes zero, in units of the weights.
        0 only rounds. Or a function of the array that is encoded, as
        `smartdeal_fit.keeping`: then no unit counts, as the array is first brought to
        the top of the codes' range by a power of two, which the bases undo.
      span: S, the size of a basis. A convolution of w > 1 has S = w.
      layout: "dense"; "conv", where a row of a slice is a row of the window; "flat",
        where all axes but the last are inputs and there is no batch.
      prune: the share of rows to drop first, see `pruned`.
      group: outputs that drop the same rows.
      **loop: as of `decompose`: iterations, vector, min_exp, max_exp, retries.

    Returns:
      A `SmartDeal` of the kernel's dtype; for another factor a `Nested` one.

    Raises:
      ValueError: for NaN or infinity, a kernel too small to save anything (leave it
        dense), one that is encoded already, or an option outside of its range.
      TypeError: for a kernel that is not of floats.

    Example:
      >>> factor = fit(3 * jnp.eye(6, 2), theta=0.1, span=2)
      >>> factor.codes[0, 0].tolist()
      [[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
      >>> bool(jnp.allclose(factor.materialize(), 3 * jnp.eye(6, 2)))
      True

    Reference:
      SmartExchange, 2020, arXiv 2005.03403, and SmartDeal, 2021, arXiv 2101.01163,
      after the authors' published code.
    Differs:
      Rows that do not fill a slice are padded, none is dropped; any width has a slice.
      Windows of any width w > 1 have bases of w x w (theirs: 3 alone).
    """
    loop = {**LOOP, **loop}
    _check(theta, span, layout, prune, group, loop)
    if isinstance(kernel, Factor):
        for factor in owners(kernel).values():
            if factor.closed:
                raise ValueError(f"a {type(kernel).__name__}: {factor.closed}")
        options = dict(theta=theta, span=span, prune=prune, group=group, **loop)
        return _nested(kernel, options)
    if not is_float(kernel):
        raise TypeError(f"SmartDeal encodes floats; this leaf is {kernel.dtype}")
    inputs = _inputs(kernel.shape, layout)
    conv = layout == "conv" and inputs[1] > 1
    span = inputs[1] if conv else span
    rows = math.ceil(math.prod(inputs) / span)
    slices = math.ceil(rows / MAX_ROWS)
    length = math.ceil(rows / slices)
    if length <= span:
        raise ValueError(
            f"a kernel {kernel.shape} has slices of {length} rows, which a basis of "
            f"{span}x{span} does not shorten: leave it dense, or take a smaller span"
        )
    if not isinstance(kernel, jax.core.Tracer) and not bool(_finite(kernel)):
        raise ValueError("the kernel holds NaN or infinity: it has no codes")
    form = (inputs, conv, slices, length, span, prune, group, callable(theta))
    least = theta(kernel) if callable(theta) else theta
    codes, basis = _encode(kernel, least, form=form, **loop)
    return SmartDeal(codes, basis, inputs, conv)


@functools.partial(jax.jit, static_argnames=("form", *LOOP, "vector"))
def _encode(kernel, theta, *, form, **loop):
    inputs, conv, slices, length, span, prune, group, lifted = form
    wide, lift = widened(kernel), jnp.int32(0)
    if lifted:
        _, top = jnp.frexp(jnp.max(jnp.abs(wide)))
        lift = loop["max_exp"] - top
        wide, theta = jnp.ldexp(wide, lift), jnp.ldexp(theta, lift)
    flat = _outputs_first(wide, inputs, conv)
    rows = math.ceil(flat.shape[-1] / span)
    flat = _padded(flat, rows * span, -1)
    table = pruned(flat.reshape(*flat.shape[:-1], rows, span), prune, group=group)
    table = _padded(table, slices * length, -2)
    table = table.reshape(*table.shape[:-2], slices, length, span)
    found = decompose(table, theta, **loop)
    basis = jnp.ldexp(found.basis, -lift)
    return found.codes.astype(kernel.dtype), basis.astype(kernel.dtype)


@jax.jit
def _finite(kernel):
    return jnp.isfinite(kernel).all()


def smartdeal(
    theta: float | Theta, **options
) -> Callable[[jax.Array | Factor], Factor]:
    """`fit` with its options, as `factorize` takes it.

    Example:
      >>> from splitjax.core.factor import factorize
      >>> from splitjax.core.tree import where
      >>> params = {"wi": {"kernel": jnp.ones((6, 2)), "bias": jnp.zeros(2)}}
      >>> new = factorize(smartdeal(0.1, span=2), params, where(".*/kernel"))
      >>> type(new["wi"]["kernel"]).__name__
      'SmartDeal'
    """
    return lambda kernel: fit(kernel, theta=theta, **options)


def pruned(rows: jax.Array, share: float, *, group: int = 32) -> jax.Array:
    """Zeros in the rows that weigh least, the same ones for a group of outputs.

    A row's score is the sum of its absolute values over the outputs of its group; of M
    rows the `ceil(share M)` lowest go.

    Args:
      rows: (..., J, M, S).
      share: from 0 to below 1.
      group: how many outputs; the last group may be smaller.

    Example:
      >>> rows = jnp.array([[[3.0], [1.0]], [[1.0], [2.0]]])
      >>> pruned(rows, 0.5).tolist()
      [[[3.0], [0.0]], [[1.0], [0.0]]]
    """
    if not share:
        return rows
    *lead, outputs, count, _ = rows.shape
    score = jnp.sum(jnp.abs(rows), -1)
    score = _padded(score, outputs + -outputs % group, -2)
    score = jnp.sum(score.reshape(*lead, -1, group, count), -2)
    place = jnp.argsort(jnp.argsort(score, -1), -1)
    keep = place >= math.ceil(share * count)
    keep = jnp.repeat(keep, group, axis=-2)[..., :outputs, :]
    return jnp.where(keep[..., None], rows, jnp.zeros_like(rows))


def _padded(a, size, axis):
    widths = [(0, 0)] * a.ndim
    widths[axis] = (0, size - a.shape[axis])
    return jnp.pad(a, widths)


def _outputs_first(kernel, inputs, conv):
    lead = kernel.ndim - len(inputs) - 1
    if conv:  # (h, w, I, J) -> (J, I, h, w)
        kernel = jnp.moveaxis(kernel, (-1, -2), (-4, -3))
    else:
        kernel = jnp.moveaxis(kernel, -1, lead)
    return kernel.reshape(*kernel.shape[: lead + 1], -1)


def _inputs(shape, layout):
    axes = {"dense": 1, "conv": 3, "flat": len(shape) - 1}[layout]
    if len(shape) < axes + 1 or axes < 1 or 0 in shape:
        raise ValueError(
            f"SmartDeal of a leaf {shape} with layout {layout!r}: it needs "
            f"{max(axes, 1) + 1} axes or more, none of them empty"
        )
    return tuple(shape[-1 - axes : -1])


def _nested(outer, options):
    def one(leaf):
        if leaf.ndim < 2 or not is_float(leaf):
            return leaf
        flat = leaf.ndim > 3
        inputs = leaf.size // leaf.shape[-1] if flat else leaf.shape[-2]
        if math.ceil(inputs / options["span"]) <= options["span"]:
            return leaf
        return fit(leaf, layout="flat" if flat else "dense", **options)

    inner = jax.tree.map(one, outer)
    if not any(map(_is_smartdeal, jax.tree.leaves(inner, is_leaf=_is_smartdeal))):
        raise ValueError(
            f"no array of this {type(outer).__name__} is large enough for SmartDeal: "
            "leave it as it is"
        )
    return Nested(inner)


def _is_smartdeal(node):
    return isinstance(node, SmartDeal)


def _check(theta, span, layout, prune, group, loop):
    if layout not in ("dense", "conv", "flat"):
        raise ValueError(f"layout {layout!r}: it is 'dense', 'conv' or 'flat'")
    if not callable(theta) and not math.isfinite(theta):
        raise ValueError(f"theta {theta}: a finite number; at 0 or below, only round")
    if span < 2 or group < 1:
        raise ValueError(f"span {span} and group {group}: at least 2 and 1")
    if not 0 <= prune < 1:
        raise ValueError(f"prune {prune}: a share from 0 to below 1")
    if loop["iterations"] < 0 or loop["retries"] < 0:
        raise ValueError(
            f"iterations {loop['iterations']}, retries {loop['retries']}: not below 0"
        )
