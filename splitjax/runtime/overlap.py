"""Work that is begun before the work before it is done."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def overlapped(jobs: Iterable[Generator[None, None, T]], in_flight: int) -> Iterator[T]:
    """Runs jobs so that some are under way at once, and are done in their order.

    Args:
      jobs: each yields when something else has it to work on, as when its message is
        sent; one that never does is done when it is begun.
      in_flight: how many are begun before the first of them is waited for; at least 1.

    Returns:
      What they return.

    Example:
      >>> def job(name):
      ...     print("begun", name)
      ...     yield
      ...     return name
      >>> list(overlapped(map(job, "abc"), 2))
      begun a
      begun b
      begun c
      ['a', 'b', 'c']
    """
    begun: deque = deque()
    for job in jobs:
        begun.append((job, _go_on(job)))
        if len(begun) >= in_flight:
            yield _finish(*begun.popleft())
    while begun:
        yield _finish(*begun.popleft())


def _go_on(job: Generator[None, None, T]) -> tuple[()] | tuple[T]:
    """Runs a job to where it yields next; what it returns, when it does."""
    try:
        next(job)
    except StopIteration as done:
        return (done.value,)
    return ()


def _finish(job: Generator[None, None, T], result: tuple[()] | tuple[T]) -> T:
    while not result:
        result = _go_on(job)
    return result[0]
