"""The processes of one job of JAX: what all are told, and what the first does."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class Disagreement(ValueError):
    """Processes of one job that do not run the same thing."""


def gather(at: str, fact: Any = None) -> list[Any]:
    """What every process gives at a point of the program that all of them come to.

    Where JAX was not told of other processes, nothing is sent. Threads of a process
    must not call it at the same time: each process must have the same order of calls.

    Args:
      at: the point, in words for a user.
      fact: what this process gives, as JSON types.

    Returns:
      The facts, by the number of the process.

    Raises:
      Disagreement: on every process, when one of them came to another point, where it
        calls `gather`, too; both are named.

    Example:
      >>> gather("the start", {"sees": True})
      [{'sees': True}]
    """
    if not jax.distributed.is_initialized():
        return [fact]
    text = json.dumps([at, fact]).encode()
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.frombuffer(text.ljust(int(np.max(sizes))), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    made = [json.loads(row.tobytes()) for row in rows.reshape(-1, padded.size)]
    for number, (point, _) in enumerate(made):
        if point != made[0][0]:
            raise Disagreement(
                f"process {number} is at {point}, and process 0 at {made[0][0]}: start "
                f"all {len(made)} with the same options, from the same checkpoint"
            )
    return [given for _, given in made]


def at_each(at: str, work: Callable[[], Any], failed: type[Exception]) -> Any:
    """Does something on every process; where one fails, none goes on without it.

    Args:
      at: see `gather`.
      work: what is done.
      failed: what those raise that have not failed themselves; it names the first one.

    Returns:
      What `work` returned here.

    Raises:
      Disagreement: see `gather`.

    Example:
      >>> at_each("the sum", lambda: 1 + 1, ValueError)
      2
    """
    made, error = None, None
    try:
        made = work()
    except Exception as found:
        error = found
    told = gather(at, None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for number, says in enumerate(told):
        if says is not None:
            raise failed(f"process {number} failed at {at}: {says}")
    return made


def at_first(at: str, work: Callable[[], Any], failed: type[Exception]) -> Any:
    """Does something on process 0 alone, while the others wait; see `at_each`.

    Example:
      >>> at_first("the sum", lambda: 1 + 1, ValueError)
      2
    """
    first = not jax.distributed.is_initialized() or jax.process_index() == 0
    return at_each(at, work if first else lambda: None, failed)
