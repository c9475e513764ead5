"""What models of texts read: ids, and a mask that says which of them are tokens."""

from collections.abc import Sequence

import jax.numpy as jnp

from splitjax.core.tree import Tree

PAIR = ("ids", "mask")


def check_tokens(
    x: Tree,
    model: str,
    *,
    pairs: Sequence[tuple[str, str]] = (PAIR,),
    maybe: Sequence[str] = (),
    longest: int | None = None,
) -> None:
    """Refuses an input that is not ids and masks, (B, T) each, and nothing else.

    Args:
      x: the input.
      model: how an error calls the model.
      pairs: the names of ids and of their mask, for each text.
      maybe: names that may be there, or not.
      longest: the most tokens of a text, where that is limited.

    Raises:
      ValueError: says what is wrong, and what is expected.

    Example:
      >>> check_tokens({"ids": 1}, "a decoder")
      Traceback (most recent call last):
      ...
      ValueError: a decoder reads a dict of ids and mask: ['ids']
    """
    wanted = [name for pair in pairs for name in pair]
    known = isinstance(x, dict) and set(wanted) <= set(x) <= {*wanted, *maybe}
    if not known:
        found = sorted(x) if isinstance(x, dict) else type(x).__name__
        more = f" ({' and '.join(maybe)} may be absent)" if maybe else ""
        names = [*wanted, *maybe]
        listing = f"{', '.join(names[:-1])} and {names[-1]}"
        raise ValueError(f"{model} reads a dict of {listing}{more}: {found}")
    for ids, mask in pairs:
        a, b = x[ids], x[mask]
        if a.ndim != 2 or b.shape != a.shape or b.dtype != jnp.bool_:
            raise ValueError(
                f"{ids} are int (B, T) and {mask} is bool (B, T): {a.dtype} {a.shape} "
                f"and {b.dtype} {b.shape}"
            )
        if longest is not None and a.shape[1] > longest:
            raise ValueError(
                f"{a.shape[1]} tokens do not fit {longest} positions: truncate the "
                "text, or cut it into shorter windows"
            )
