"""Random keys are folded by name, never drawn from a hidden stream."""

import zlib
from typing import overload

import jax

Part = str | int | jax.Array


@overload
def fold(key: None, *parts: Part) -> None: ...
@overload
def fold(key: jax.Array, *parts: Part) -> jax.Array: ...
@overload
def fold(key: jax.Array | None, *parts: Part) -> jax.Array | None: ...
def fold(key: jax.Array | None, *parts: Part) -> jax.Array | None:
    """Folds names and numbers into a key, one after the other.

    The result depends on the key and the parts alone, so a stage draws the same numbers
    wherever the model is cut and whichever process runs it.

    Args:
      key: a typed PRNG key, or None where nothing random happens.
      *parts: names (hashed by CRC-32, the same on every machine) or integers, which may
        be traced.

    Returns:
      A key, or None when `key` is None.

    Example:
      >>> import jax
      >>> a = fold(jax.random.key(0), "layer_0", 3)
      >>> b = fold(fold(jax.random.key(0), "layer_0"), 3)
      >>> bool(a == b), fold(None, "layer_0")
      (True, None)
    """
    if key is None:
        return None
    for part in parts:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part
        key = jax.random.fold_in(key, number)
    return key
