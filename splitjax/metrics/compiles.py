"""How many programs a jitted function was compiled to."""

import functools
from collections.abc import Callable
from typing import Any

import jax


class Counted:
    """`jax.jit` of a function that counts its programs.

    Every new set of shapes, dtypes and static values is traced, lowered and compiled
    once. Lengths of texts should be few: see `data.buckets`.

    Attributes:
      programs: how many there are by now.

    Args:
      function: to be jitted.
      **options: of `jax.jit`.

    Example:
      >>> import jax.numpy as jnp
      >>> double = Counted(lambda x: 2 * x)
      >>> for length in (3, 5, 3):
      ...     _ = double(jnp.ones(length))
      >>> double.programs
      2
    """

    def __init__(self, function: Callable[..., Any], **options: Any):
        self.programs = 0

        @functools.wraps(function)
        def traced(*args, **kwargs):
            self.programs += 1  # runs when a program is made, and only then
            return function(*args, **kwargs)

        self._call = jax.jit(traced, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self._call(*args, **kwargs)
