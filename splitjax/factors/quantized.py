"""A frozen kernel as qwix's codes of 8 or 4 bits, and a scale for each block."""

import dataclasses
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.core.factor import Factor, dot, register_factor
from splitjax.core.gradient import frozen_product
from splitjax.core.precision import widened
from splitjax.core.tree import is_float, nearest

QTYPES = {"int8": 8, "int4": 4, "nf4": 4, "float8_e4m3fn": 8, "float8_e5m2": 8}  # bits


@register_factor
class Quantized(Factor):
    """A kernel `(I, J)` of entries `level(codes[i, j]) * scale[i // block, j]`.

    Codes are bytes, two codes of 4 bits in one, so that memory, checkpoints and
    `nbytes` have the same size, and no gradient, cast or optimizer takes them for
    numbers: JAX's own arrays of int4 take a byte for each on a CPU. No gradient reaches
    the scales either, which are of the kernel's dtype: the kernel is frozen.

    Attributes:
      codes: uint8 (..., I, J), or (..., ceil(I / 2), J) for codes of 4 bits: of two
        rows, the first is in the low bits. Leading axes are a batch.
      scale: (..., ceil(I / block), J).
      rows: I.
      block: rows that share a scale; the last block may be shorter.
      qtype: of `QTYPES`, what the bits mean.

    Example:
      >>> factor = fit(jnp.ones((6, 4)), "nf4", block=4)
      >>> factor.codes.shape, factor.scale.shape, factor.spec.shape
      ((3, 4), (2, 4), (6, 4))
      >>> factor.dot(jnp.ones(6)).tolist()
      [6.0, 6.0, 6.0, 6.0]
    """

    codes: jax.Array
    scale: jax.Array
    rows: int = dataclasses.field(metadata={"static": True})
    block: int = dataclasses.field(metadata={"static": True})
    qtype: str = dataclasses.field(metadata={"static": True})

    closed = (
        "a quantized kernel is codes, not numbers of any size: it comes last; put an "
        "adapter beside it (lora.adapt), choose other leaves, or materialize it first"
    )
    adaptable = True

    @property
    def numbers(self) -> int:
        """Those of the dense kernel, whose bits are fewer, and the scales."""
        *lead, _, columns = self.codes.shape
        return math.prod(lead) * self.rows * columns + self.scale.size

    def materialize(self) -> jax.Array:
        """The dense kernel `(..., I, J)`, by `qwix.dequantize`."""
        qwix = _qwix()
        short = self.scale.shape[-2] * self.block - self.rows
        codes = _padded(_typed(self.codes, self.rows, self.qtype), short)
        scale = jax.lax.stop_gradient(self.scale)
        whole = qwix.QArray(codes, scale, None, self.qtype)
        with jax.numpy_dtype_promotion("standard"):  # qwix mixes dtypes
            return qwix.dequantize(whole)[..., : self.rows, :]

    def dot(self, x: jax.Array) -> jax.Array:
        """`x (..., I)` times the dense kernel, which is made anew for the way back."""
        return frozen_product(_rebuilt_dot, self, x)


def _rebuilt_dot(factor: Quantized, x: jax.Array) -> jax.Array:
    return dot(factor.materialize(), x)


def fit(kernel: jax.Array, qtype: str = "nf4", *, block: int | None = 64) -> Quantized:
    """The nearest code of each entry, in units of the largest of its block.

    `scale = max |w| / top`, over the rows of a block and for each output; `top` is the
    largest level: 127.5 and 7.5 of int8 and int4, 1 of nf4, 448 and 57344 of floats. An
    entry of int8 or int4 is off by `scale / 2` at most; of nf4 by half the widest gap
    of its 16 levels, .152 of the block's largest; of a float by 2^-4 (e4m3) or 2^-3
    (e5m2) of itself, or half the least step. A kernel of 16 bits adds the rounding of
    scale, level and product, each 2^-9 (bfloat16) or 2^-12 of the entry at most.

    Args:
      kernel: (..., I, J), floating; leading axes are a batch.
      qtype: a name of `QTYPES`: qwix's.
      block: rows of the input axis that share a scale; None: all of them.

    Returns:
      A factor of the kernel's dtype. With its scales an entry takes, in blocks of 64,
      4.5 or 8.5 bits in the place of 32, and 4.25 or 8.25 in the place of 16.

    Raises:
      ImportError: without qwix, which is the extra `quantize`.
      ValueError: for a name that is not there, a block below 1, a kernel that is no
        matrix, is empty, or holds NaN or infinity, or a block whose scale vanishes in
        the kernel's dtype.
      TypeError: for a factor, or a kernel that is not of floats.

    Example:
      >>> w = jnp.array([[1.0, -0.2], [0.3, 0.1]])
      >>> near = fit(w, "int8", block=None).materialize()
      >>> bool(jnp.allclose(near, w, atol=1 / 255))
      True

    Reference:
      T. Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023,
      arXiv:2305.14314, section 3, for nf4 and for a `lora.Lora` beside it.
    Differs:
      Scales are not quantized in turn (the paper's double quantization, .37 bits less
      of each number), and nothing pages an optimizer's state to the host. A block is of
      rows of one output, and shorter at the end where I is no multiple of it.
    """
    if isinstance(kernel, Factor):
        raise TypeError(
            f"a {type(kernel).__name__} is not quantized: quantize the dense kernel "
            "first and put an adapter beside it, or materialize this factor"
        )
    bits_of(qtype)
    if not is_float(kernel):
        raise TypeError(f"quantized are floats; this leaf is {kernel.dtype}")
    if kernel.ndim < 2 or 0 in kernel.shape:
        raise ValueError(f"quantized are matrices; this leaf is {kernel.shape}")
    rows = kernel.shape[-2]
    block = rows if block is None else block
    if block < 1:
        raise ValueError(f"block {block}: rows that share a scale, from 1 on, or None")
    block = min(block, rows)
    codes, scale, finite, kept = _encode(kernel, qtype, block)
    if not isinstance(kernel, jax.core.Tracer):
        if not bool(finite):
            raise ValueError("the kernel holds NaN or infinity: it has no codes")
        if not bool(kept):
            raise ValueError(
                f"a block of the kernel is so small that {kernel.dtype} has no scale "
                "for it: give the kernel in float32"
            )
    return Quantized(codes, scale, rows, block, qtype)


def _encode(kernel: jax.Array, qtype: str, block: int) -> tuple[jax.Array, ...]:
    """Codes, scales, and whether all entries, and all scales, are what they must be."""
    wide, qwix = widened(kernel), _qwix()
    wide = _padded(wide, -kernel.shape[-2] % block)
    row = kernel.ndim - 2
    others = [axis for axis in range(kernel.ndim) if axis != row]
    with jax.numpy_dtype_promotion("standard"):  # qwix mixes dtypes
        found = qwix.quantize(
            wide, qtype, channelwise_axes=others, tiled_axes={row: block}
        )
    scale = found.scale.astype(kernel.dtype)
    codes = _bytes(found.qvalue[..., : kernel.shape[-2], :], qtype)
    return codes, scale, jnp.isfinite(kernel).all(), (scale > 0).all()


def quantized_to(
    qtype: str = "nf4", *, block: int | None = 64
) -> Callable[[Any], Quantized]:
    """`fit` with its options, as `factorize` takes it.

    Example:
      >>> from splitjax.core.factor import factorize
      >>> from splitjax.core.tree import where
      >>> params = {"wi": {"kernel": jnp.ones((6, 2)), "bias": jnp.zeros(2)}}
      >>> new = factorize(quantized_to("int8"), params, where(".*/kernel"))
      >>> new["wi"]["kernel"].qtype, new["wi"]["bias"] is params["wi"]["bias"]
      ('int8', True)
    """
    bits_of(qtype)
    return lambda kernel: fit(kernel, qtype, block=block)


def keeping(share: float, *, block: int = 64) -> Callable[[Any], Quantized]:
    """The fit to int8, or else nf4, that keeps at most a share of a kernel's bytes.

    Args:
      share: from 0 to 1, of the bytes in the kernel's own dtype.
      block: as of `fit`.

    Raises:
      ValueError: on use, where nf4 takes more.

    Example:
      >>> kernel = jnp.ones((128, 8))
      >>> keeping(0.5)(kernel).qtype, keeping(0.2)(kernel).qtype
      ('int8', 'nf4')
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share} of a kernel: it must be from 0 to 1")

    def one(kernel):
        for qtype in ("int8", "nf4"):
            least = stored_share(kernel, qtype, block)
            if least <= share:
                return fit(kernel, qtype, block=block)
        raise ValueError(
            f"share {share} of the bytes of a kernel {kernel.shape} of {kernel.dtype}: "
            f"nf4 in blocks of {block} takes {least:.3f} of them"
        )

    return one


def stored_share(kernel: Any, qtype: str, block: int) -> float:
    """The part of a kernel's bytes that codes and scales take.

    Args:
      kernel: an array or its spec.
      qtype: as of `fit`, as the rest.
      block: see `fit`.

    Example:
      >>> stored_share(jnp.ones((128, 8)), "nf4", 64)
      0.140625
    """
    size = jnp.dtype(kernel.dtype).itemsize
    rows = kernel.shape[-2]
    scales = math.ceil(rows / min(block, rows)) * size
    return (math.ceil(rows * bits_of(qtype) / 8) + scales) / (rows * size)


def bits_of(qtype: str) -> int:
    """The bits of a code.

    Raises:
      ValueError: for a name that is not there.

    Example:
      >>> bits_of("nf4")
      4
    """
    if qtype not in QTYPES:
        raise ValueError(f"qtype {qtype!r}: {nearest(qtype, tuple(QTYPES))}")
    return QTYPES[qtype]


def _padded(rows: jax.Array, count: int) -> jax.Array:
    """More rows of zeros; whether they are codes or numbers, they are not kept."""
    return jnp.pad(rows, [(0, 0)] * (rows.ndim - 2) + [(0, count), (0, 0)])


def _bytes(codes: jax.Array, qtype: str) -> jax.Array:
    """qwix's codes (..., I, J) as bytes."""
    if QTYPES[qtype] == 8:
        return jax.lax.bitcast_convert_type(codes, jnp.uint8)
    wide = codes.astype(jnp.int8)  # of int4 the sign is extended
    nibbles = jax.lax.bitcast_convert_type(wide, jnp.uint8) & jnp.uint8(15)
    pairs = _padded(nibbles, nibbles.shape[-2] % 2)
    return pairs[..., ::2, :] | pairs[..., 1::2, :] << jnp.uint8(4)


def _typed(codes: jax.Array, rows: int, qtype: str) -> jax.Array:
    """Undoes `_bytes`: nf4 as uint4, the others in the dtype of their name."""
    dtype = jnp.dtype("uint4" if qtype == "nf4" else qtype)
    if QTYPES[qtype] == 8:
        return jax.lax.bitcast_convert_type(codes, dtype)
    pairs = jnp.stack([codes & jnp.uint8(15), codes >> jnp.uint8(4)], -2)
    *lead, count, _, columns = pairs.shape
    nibbles = pairs.reshape(*lead, 2 * count, columns)[..., :rows, :]
    if qtype == "int4":  # the sign, which is the fourth bit, to the front of the byte
        signed = jax.lax.bitcast_convert_type(nibbles << jnp.uint8(4), jnp.int8)
        return (signed >> jnp.int8(4)).astype(dtype)
    return nibbles.astype(dtype)


def _qwix() -> Any:
    if importlib.util.find_spec("qwix") is None:
        raise ImportError(
            "quantized kernels need qwix: pip install 'splitjax[quantize]'"
        )
    import qwix

    return qwix
