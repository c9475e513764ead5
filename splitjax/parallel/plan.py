"""A plan: the shape of the mesh for so many devices, and the stages it has."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from splitjax.parallel.border import Border
from splitjax.parallel.cost import Block
from splitjax.parallel.machine import Machine
from splitjax.parallel.mesh import text_of
from splitjax.parallel.stages import Plan, staged


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One shape of the mesh that was looked at.

    Attributes:
      data: see `Plan`, as the rest.
      pipe: see `Plan`.
      tensor: see `Plan`.
      plan: None, where there is none.
      reason: why not.
    """

    data: int
    pipe: int
    tensor: int
    plan: Plan | None = None
    reason: str = ""

    @property
    def mesh(self) -> str:
        """See `Plan.mesh`."""
        return text_of({"data": self.data, "pipe": self.pipe, "tensor": self.tensor})


def candidates(
    blocks: Sequence[Block],
    borders: Sequence[Border],
    machine: Machine,
    *,
    devices: int,
    micro: int,
    rows: int,
    widths: Sequence[int] = (),
    **how: Any,
) -> tuple[Candidate, ...]:
    """Plans every shape of a mesh of some devices, the quickest first.

    Args:
      blocks: see `staged`.
      borders: see `staged`.
      machine: see `staged`.
      devices: how many; the product of the axes.
      micro: see `staged`.
      rows: of one micro-batch of the whole batch; `data` must divide them.
      widths: what `tensor` must divide: heads, heads of keys, the width of blocks.
        None at all: the matrices are not parted.
      **how: see `staged`.

    Returns:
      Those that can be had by time, equals by fewer stages; then the others.

    Raises:
      ValueError: for no device or no row.

    Example:
      >>> blocks = [Block(f"b{i}", 1.0, 2.0, 4, 4, 4) for i in range(6)]
      >>> borders = [Border(f"b{i}", 4, 4, (), ()) for i in range(5)]
      >>> found = candidates(blocks, borders, Machine(1.0, 1.0), devices=4, micro=4,
      ...     rows=2)
      >>> [(c.data, c.pipe, c.tensor) for c in found if c.plan]
      [(2, 2, 1), (1, 4, 1)]
    """
    if devices < 1 or rows < 1:
        raise ValueError(f"candidates({devices=}, {rows=}): both are 1 or more")
    found = []
    for data, pipe in itertools.product(range(1, devices + 1), repeat=2):
        if devices % (data * pipe):
            continue
        tensor = devices // (data * pipe)
        shape = dict(data=data, pipe=pipe, tensor=tensor)
        try:
            check_shape(data, tensor, rows, widths)
            made = staged(blocks, borders, machine, micro=micro, **shape, **how)
            found.append(Candidate(**shape, plan=made))
        except ValueError as error:
            found.append(Candidate(**shape, reason=str(error)))

    def rank(each: Candidate) -> tuple:
        if each.plan is None:
            return (True,)
        return False, each.plan.seconds, each.pipe, each.tensor

    return tuple(sorted(found, key=rank))


def check_shape(data: int, tensor: int, rows: int, widths: Sequence[int]) -> None:
    """Raises a ValueError for a mesh that cannot divide the rows or the matrices.

    Args:
      data: see `Plan`.
      tensor: see `Plan`.
      rows: see `candidates`.
      widths: see `candidates`.

    Example:
      >>> check_shape(2, 1, 3, ())
      Traceback (most recent call last):
      ...
      ValueError: 3 rows of a micro-batch are not divided by data=2
    """
    if rows % data:
        raise ValueError(f"{rows} rows of a micro-batch are not divided by {data=}")
    if tensor > 1 and not widths:
        raise ValueError("nothing is known that the axis tensor could divide")
    if odd := [width for width in widths if width % tensor]:
        raise ValueError(f"{tensor=} does not divide {', '.join(map(str, odd))}")


def best(found: Sequence[Candidate]) -> Plan:
    """The quickest plan.

    Raises:
      ValueError: when there is none; it says why, shape by shape.

    Example:
      >>> best([Candidate(1, 2, 1, reason="too large")])
      Traceback (most recent call last):
      ...
      ValueError: no mesh can be had: data=1,pipe=2,tensor=1: too large
    """
    for each in found:
        if each.plan:
            return each.plan
    lines = [f"{each.mesh}: {each.reason}" for each in found]
    raise ValueError(f"no mesh can be had: {'; '.join(lines)}")
