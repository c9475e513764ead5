"""Bytes are entropy-coded on the host, when they are put on the wire."""

import jax

from splitjax.core.codec import Codec
from splitjax.core.message import (
    COLUMNS,
    Lossless,
    has_columns,
    is_lossless,
    is_sized,
)


def lossless(coder: int | str = 1) -> Codec:
    """Codes the bytes of every leaf without loss, where that makes them fewer.

    Programs have static shapes, so inside one it does nothing but mark the leaves: the
    bytes are coded when a frame is written, and it is the frame that is counted. A leaf
    that would not be shorter crosses as it is. So `wire_bytes` is the bound, and a
    frame adds 4 bytes for each leaf.

    It stands last in a chain, and pays after a codec: on raw float32 activations it
    saves next to nothing.

    Args:
      coder: effort of zstandard, 1 (fast) to 19: where codes are as good as random it
        is a Huffman coder at every level, with a bit or more for each byte. Or
        "columns", made for `uniform`: whole numbers of 8 or 16 bits in rows of up to
        2^14 are coded under a normal distribution for each place on the last axis,
        whose mean and deviation cross, too, and a factor for each row where that pays,
        as it does for gradients; a code may take far less than a bit. Other leaves are
        left to zstandard then.

    Returns:
      A rough codec of any tree, without state.

    Raises:
      ValueError: for another coder, and on use when it stands twice in a chain.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from splitjax.codecs.quantize import quantize
      >>> from splitjax.core.codec import Context, chain
      >>> codec, x = chain(quantize(8), lossless()), jnp.zeros((8, 64))
      >>> message, _ = codec.encode(x, codec.init(x), Context())
      >>> bool((codec.decode(message, codec.init(x))[0] == x).all())
      True

    Reference:
      Y. Collet, M. Kucherawy, "Zstandard Compression and the 'application/zstd' Media
      Type", 2021, RFC 8878. J. Duda, "Asymmetric numeral systems", 2009,
      arXiv:0902.0271.

    Differs:
      Bytes of wider numbers are sorted by their place in the number before, for
      zstandard.
    """
    whole = isinstance(coder, int) and not isinstance(coder, bool)
    if not (coder == COLUMNS or (whole and 1 <= coder <= 19)):
        raise ValueError(f"lossless({coder!r}): 1 to 19, or {COLUMNS!r}")

    def mark(node):
        if is_lossless(node):
            raise ValueError("lossless stands twice in a chain: leave one out")
        array = node.buffer if is_sized(node) else node
        if coder == COLUMNS and not has_columns(array.dtype, array.shape):
            return Lossless(node, 1)
        return Lossless(node, coder)

    def encode(x, state, ctx):
        def stop(node):
            return is_sized(node) or is_lossless(node)

        return jax.tree.map(mark, x, is_leaf=stop), state

    def decode(message, state):
        def one(node):
            return node.leaf if is_lossless(node) else node

        return jax.tree.map(one, message, is_leaf=is_lossless), state

    return Codec(lambda spec: (), encode, decode, name=f"lossless({coder})")
