"""SmartDeal as bytes: one bit for each code, a few for each that is not zero."""

import math
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.factor import Factor
from splitjax.core.precision import widened
from splitjax.core.tree import Tree
from splitjax.factors.power_of_two import is_power_of_two
from splitjax.factors.quantized import Quantized
from splitjax.factors.smartdeal import SmartDeal

MAGIC = b"sd1"
DTYPES = ("float32", "bfloat16", "float16", "float64")
AXES = 16  # the most that are read: a bound for what comes over a network


def pack(params: Tree) -> Tree:
    """Parameters with each SmartDeal factor as bytes.

    The bytes are a header, one bit for each code that is not zero, its sign and level
    in `1 + ceil(log2 levels)` bits for each of those, and the bases as they are. The
    levels are the magnitudes that occur; the header lists their exponents.

    Args:
      params: a tree, or one factor. Others are left; factors inside of a `Nested` one
        are packed.

    Returns:
      The tree, `bytes` in the place of `SmartDeal` nodes.

    Raises:
      ValueError: for codes that are not powers of two any more.

    Example:
      >>> from splitjax.factors.smartdeal import fit
      >>> factor = fit(jnp.eye(6, 2), theta=0.1, span=2)
      >>> data = pack({"kernel": factor})["kernel"]
      >>> back = unpack({"kernel": data})["kernel"]
      >>> len(data), bool((back.codes == factor.codes).all())
      (64, True)
    """
    return jax.tree.map(
        lambda node: _write(node) if isinstance(node, SmartDeal) else node,
        params,
        is_leaf=lambda node: isinstance(node, SmartDeal),
    )


def unpack(packed: Tree) -> Tree:
    """Undoes `pack`, to the bit.

    Raises:
      ValueError: for bytes that `pack` did not make; nothing is allocated by their
        word before their length is seen to fit.

    Example: see `pack`.
    """
    return jax.tree.map(
        lambda leaf: _read(leaf) if isinstance(leaf, bytes) else leaf, packed
    )


def wire_bits(factor: SmartDeal) -> int:
    """What the codes and the bases of a factor take, without header and padding.

    Example:
      >>> codes = jnp.array([[1.0, 0.0], [0.0, -2.0], [0.5, 0.0]])[None, None]
      >>> wire_bits(SmartDeal(codes, jnp.ones((1, 1, 2, 2)), (6,)))
      143
    """
    codes = _numbers(factor.codes)
    levels = len(np.unique(np.abs(codes[codes != 0])))
    bits = _level_bits(levels) + 1
    basis = factor.basis.size * factor.basis.dtype.itemsize * 8
    return int(np.count_nonzero(codes)) * bits + codes.size + basis


def stored_bytes(params: Tree) -> int:
    """Bytes of parameters where SmartDeal factors are packed, and arrays as they are.

    Example:
      >>> from splitjax.factors.smartdeal import fit
      >>> factor = fit(jnp.eye(6, 2), theta=0.1, span=2)
      >>> stored_bytes({"kernel": factor, "bias": jnp.zeros(2)})
      72
    """
    leaves = jax.tree.leaves(pack(params))
    return sum(len(a) if isinstance(a, bytes) else a.nbytes for a in leaves)


def stored_numbers(params: Tree) -> int:
    """Numbers of parameters; of SmartDeal's codes, those that are not zero.

    Of a quantized kernel they are as many as of the dense one, and its scales.

    Example:
      >>> from splitjax.factors.smartdeal import fit
      >>> factor = fit(jnp.eye(6, 2), theta=0.1, span=2)
      >>> int(jnp.count_nonzero(factor.codes)), factor.basis.size
      (2, 8)
      >>> stored_numbers({"kernel": factor, "bias": jnp.zeros(2)})
      12
    """

    def one(node):
        if isinstance(node, SmartDeal):
            return int(jnp.count_nonzero(node.codes)) + node.basis.size
        return node.numbers if isinstance(node, Quantized) else node.size

    kinds = SmartDeal, Quantized
    nodes = jax.tree.leaves(params, is_leaf=lambda n: isinstance(n, kinds))
    return sum(map(one, nodes))


def _level_bits(levels: int) -> int:
    return math.ceil(math.log2(levels)) if levels else 0


def _numbers(codes: jax.Array) -> np.ndarray:
    # NumPy itself has no bfloat16; the cast is exact.
    return np.asarray(widened(codes))


def _write(factor: SmartDeal) -> bytes:
    exact = is_power_of_two(factor.codes)
    if not bool(jnp.all(exact)):
        raise ValueError(
            f"{int(jnp.sum(~exact))} of {exact.size} codes are not +-2^k: an optimizer "
            "moved them; train codes by bucket_switch, or fit the kernel again"
        )
    name = factor.codes.dtype.name
    codes = _numbers(factor.codes)
    some = codes != 0
    exponents, level = np.unique(np.frexp(codes[some])[1], return_inverse=True)
    width = _level_bits(len(exponents))
    symbols = level.reshape(-1) * 2 + (codes[some] < 0)
    bits = (symbols[:, None] >> np.arange(width + 1)) & 1
    body = np.concatenate([some.reshape(-1), bits.reshape(-1)]).astype(np.uint8)
    shape, inputs = factor.codes.shape, factor.inputs
    head = struct.pack(
        f"<3s5B{len(shape) + len(inputs)}I{len(exponents)}h",
        MAGIC,
        DTYPES.index(name),
        factor.conv,
        len(shape),
        len(inputs),
        len(exponents),
        *shape,
        *inputs,
        *map(int, exponents),
    )
    return head + np.packbits(body).tobytes() + np.asarray(factor.basis).tobytes()


def _read(data: bytes) -> Factor:
    try:
        return _parsed(data)
    except (struct.error, IndexError) as error:
        raise ValueError(f"{len(data)} bytes are no packed factor: {error}") from None


def _parsed(data: bytes) -> Factor:
    magic, kind, conv, axes, inner, levels = struct.unpack_from("<3s5B", data)
    if magic != MAGIC or kind >= len(DTYPES) or conv > 1 or not 4 <= axes <= AXES:
        raise ValueError(f"{len(data)} bytes are no packed factor: {data[:8]!r}")
    at = struct.calcsize("<3s5B")
    sizes = struct.unpack_from(f"<{axes + inner}I", data, at)
    at += 4 * (axes + inner)
    exponents = struct.unpack_from(f"<{levels}h", data, at)
    at += 2 * levels
    shape, inputs = sizes[:axes], sizes[axes:]
    count = math.prod(shape)
    basis_shape = (*shape[:-2], shape[-1], shape[-1])
    dtype: Any = jnp.dtype(DTYPES[kind])
    basis_bytes = math.prod(basis_shape) * dtype.itemsize
    if count > 8 * len(data) or math.prod(inputs) > math.prod(shape[-3:]):
        raise ValueError(f"{len(data)} bytes do not hold a packed factor of {shape}")
    body = np.frombuffer(data, np.uint8, offset=at)
    some = np.unpackbits(body, count=count).astype(bool)
    width, used = _level_bits(levels) + 1, int(some.sum())
    size = -(-(count + used * width) // 8)
    if (used > 0) != (levels > 0) or len(body) != size + basis_bytes:
        raise ValueError(
            f"{len(data)} bytes are no packed factor of {shape}: it has "
            f"{at + size + basis_bytes}"
        )
    bits = np.unpackbits(body[:size], count=count + used * width)[count:]
    weights = 1 << np.arange(width)
    symbols = bits.reshape(used, width).astype(np.int64) @ weights
    codes = np.zeros(count, np.float64)
    signed = np.where(symbols & 1, -0.5, 0.5)
    codes[some] = np.ldexp(signed, np.asarray(exponents, np.int64)[symbols >> 1])
    basis = np.frombuffer(data[len(data) - basis_bytes :], dtype).reshape(basis_shape)
    return SmartDeal(
        jnp.asarray(codes.reshape(shape).astype(dtype)),
        jnp.asarray(basis),
        inputs,
        bool(conv),
    )
