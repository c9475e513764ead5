"""C3: some examples cross as one, by circular convolution with fixed random keys."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.codecs.finite import real, within, zero_unless
from splitjax.codecs.layout import first_rows
from splitjax.core.codec import Codec
from splitjax.core.keys import fold
from splitjax.core.lift import counted
from splitjax.core.message import Sized, is_sized
from splitjax.core.precision import widened
from splitjax.core.tree import Tree, is_float, nearest

KINDS = ("gauss", "unitary")
# The sum of a group and its way there and back stay far below the end of float32.
LARGEST = 2.0**64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Groups:
    """What crosses for one array of B rows (its leading axis) of D values.

    Attributes:
      code: float32 `[ceil(B / ratio), D]`, `Sized` as the input is.
      mean: float32 `[B]`, the sum of each row over the root of D; or None.
      pad: uint8 scalar: by how many rows the last group of a `Sized` is short.
      shape: of the array.
      dtype: of the array.
    """

    code: Any
    mean: Any
    pad: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})


def c3(
    ratio: int, *, keys: str = "gauss", seed: int = 0, center: bool = False
) -> Codec:
    """Sends the sum of `ratio` rows, each bound to a key of its own.

    Row i of a group is convolved around a circle with key i, and the group is summed:
    `s = sum_i k_i * z_i`. The receiver correlates: `z'_i = k_i (corr) s`. The rows of a
    group disturb each other like noise: for independent rows of mean zero the error
    `E |z' - z|^2 / |z|^2` is `ratio` with Gaussian keys and `ratio - 1` with unitary
    ones. It is no good reconstruction; a model learns through the noise.

    Decode is the adjoint of encode, so the gradient of the message is `encode` of the
    gradient, and as small. By FFT: `O(D log D)` a row.

    A leaf's rows are its leading axis (examples), all other axes are one row; a `Sized`
    leaf (tokens, after `ragged`) groups its used rows. Neighbors are grouped, so what
    is decoded of a row depends on its group, also in evaluation. The last group is
    filled with zeros, which are not decoded. Scalars and empty arrays cross as they
    are. Rows shorter than about 256 values are disturbed more than the law says.

    NaN, infinity and magnitudes above 2^64 become zero before they could spoil their
    group, and are counted: see `nonfinite`. So does what `ctx.mask` marks as padding,
    uncounted; in the padding the receiver finds noise. One row that is much longer than
    its neighbors floods them.

    Args:
      ratio: rows of a group, 1 to 256.
      keys: "gauss" or "unitary" (all frequencies of a key have magnitude one: ratio 1
        is then exact).
      seed: of the keys, which both ends make from it. Give links unlike seeds.
      center: send each row's mean beside the code, four bytes a row, and convolve what
        is left. For activations that are not centered (after a ReLU): by chance a key
        can amplify the mean a lot.

    Returns:
      A smooth, linear codec; its state has the keys by row width. The message is
      float32, whatever the input is: narrow it in a chain. Other float dtypes are
      computed in float32 and restored.

    Raises:
      ValueError: for an argument that is none of these, and on use for rows of another
        width than `init` saw.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from splitjax.core.codec import Context, wire_bytes
      >>> codec = c3(4, keys="unitary")
      >>> x = jax.random.normal(jax.random.key(0), (6, 512))
      >>> message, state = codec.encode(x, codec.init(x), Context())
      >>> message.node.code.shape, codec.decode(message, state)[0].shape
      ((2, 512), (6, 512))
      >>> wire_bytes(codec, jax.ShapeDtypeStruct((64, 4096), jnp.float32))
      262144

    Reference:
      C.-Y. Hsieh et al., "C3-SL: Circular Convolution-Based Batch-Wise Compression for
      Communication-Efficient Split Learning", 2022, arXiv:2207.12397. Unitary keys:
      T. A. Plate, "Holographic Reduced Representations", 1995.

    Differs:
      By FFT and not directly; keys from a seed; a batch may have any size; unitary keys
      and `center` are ours. (The authors' code normalizes each row where the cut
      follows a pooling; here nothing is normalized.)
    """
    if not 1 <= ratio <= 256:
        raise ValueError(f"c3({ratio}): a group has 1 to 256 rows")
    if keys not in KINDS:
        raise ValueError(f"c3 has no keys={keys!r}: {nearest(keys, KINDS)}")

    def constants(spec):
        chance = jax.random.key(seed)
        widths = {_width(a) for a in _arrays(spec) if _taken(a)}
        return {
            "keys": {
                str(width): _spectra(fold(chance, "c3", width), ratio, width, keys)
                for width in sorted(widths)
            }
        }

    def spectra(state, width, dtype):
        held = state["keys"]
        if str(width) not in held:
            raise ValueError(
                f"c3 has no keys for rows of {width} values, but for {sorted(held)}: "
                "the array has another shape than the spec given to init"
            )
        parts = held[str(width)].astype(dtype)
        return jax.lax.complex(parts[0], parts[1])

    def encode(x, used, ctx, index, state):
        if not _taken(x):
            return (x if used is None else Sized(x, used)), jnp.int32(0)
        count, width = x.shape[0], _width(x)
        good, valid = within(x, LARGEST), None
        if used is None:
            valid = real(x.shape, ctx.mask)
        bad = ~good if valid is None else ~good & valid
        good = good if valid is None else good & valid
        rows = widened(zero_unless(good, x)).reshape(count, width)
        key = spectra(state, width, rows.dtype)
        mean = None
        if center:
            mean = jnp.sum(rows, axis=1) * (1 / math.sqrt(width))
            rows = rows - mean[:, None] * (1 / math.sqrt(width))
        groups = -(-count // ratio)
        rows = jnp.pad(rows, ((0, groups * ratio - count), (0, 0)))
        bound = jnp.fft.rfft(rows.reshape(groups, ratio, width)) * key[None]
        code, pad = jnp.fft.irfft(jnp.sum(bound, axis=1), n=width), None
        if used is not None:
            filled = (used + ratio - 1) // ratio
            pad = (filled * ratio - used).astype(jnp.uint8)
            code = first_rows(code, filled)
            mean = None if mean is None else first_rows(mean, used)
        node = Groups(code, mean, pad, x.shape, x.dtype.name)
        return node, jnp.sum(bad, dtype=jnp.int32)

    def decode(node, state):
        if not isinstance(node, Groups):
            return node
        sized = is_sized(node.code)
        code = node.code.buffer if sized else node.code
        count, width = node.shape[0], code.shape[-1]
        key = spectra(state, width, code.dtype)
        bound = jnp.fft.rfft(code)[:, None] * jnp.conj(key)[None]
        rows = jnp.fft.irfft(bound, n=width).reshape(-1, width)[:count]
        if node.mean is not None:
            mean = node.mean.buffer if sized else node.mean
            own = jnp.sum(rows, axis=1) * (1 / math.sqrt(width))
            rows = rows + (mean - own)[:, None] * (1 / math.sqrt(width))
        top = float(jnp.finfo(node.dtype).max)
        if top < LARGEST:
            rows = jnp.clip(rows, -top, top)
        x = rows.astype(node.dtype).reshape(node.shape)
        if not sized:
            return x
        return first_rows(x, node.code.used * ratio - node.pad.astype(jnp.int32))

    name = f"c3({ratio},{keys}{',center' if center else ''}"
    name += f",seed={seed})" if seed else ")"
    made = counted(encode, decode, constants=constants, smooth=True, name=name)
    return dataclasses.replace(made, mixes=ratio)


def _arrays(spec: Tree) -> list:
    leaves = jax.tree.leaves(spec, is_leaf=is_sized)
    arrays = [leaf.buffer if is_sized(leaf) else leaf for leaf in leaves]
    return [a for a in arrays if is_float(a)]


def _taken(array: Any) -> bool:
    return bool(array.shape) and math.prod(array.shape) > 0


def _width(array: Any) -> int:
    return math.prod(array.shape[1:])


def _spectra(key: jax.Array, ratio: int, width: int, kind: str) -> jax.Array:
    """The keys' Fourier transforms, float32 `[2, ratio, width // 2 + 1]`.

    Real and imaginary part apart, since state is checkpointed as plain numbers.
    """
    drawn = jax.random.normal(key, (ratio, width))
    drawn = drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)
    found = jnp.fft.rfft(drawn)
    if kind == "unitary":
        found = found / jnp.abs(found).astype(found.dtype)
    return jnp.stack([found.real, found.imag])
