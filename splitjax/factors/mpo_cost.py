"""What a product with an MPO costs: rebuilding the matrix, or core after core."""

import math
from collections.abc import Sequence
from typing import NamedTuple

Shape = Sequence[int]

# Operations of a matrix product in the time in which one float32 is read or written,
# about, on one core of a server. By operations alone the slower way would be chosen;
# `experiments.bench_mpo` shows what "auto" takes in parts of the quicker one.
MOVE = 60


class Work(NamedTuple):
    """Floating-point operations, a multiply-add as two, and floats moved.

    Example:
      >>> Work(100, 2).total
      220
    """

    operations: int
    moved: int

    @property
    def total(self) -> int:
        """Both, in operations."""
        return self.operations + MOVE * self.moved


class MpoCost(NamedTuple):
    """The work of a product with an MPO.

    Attributes:
      rebuild: to contract the cores to the dense matrix and to read it, once a call.
      dense: of a token's product with the dense matrix.
      once: to read the cores, where they are used one after the other.
      rightward: of a token's product core after core, the first one first.
      leftward: the same, the last core first.
    """

    rebuild: Work
    dense: Work
    once: Work
    rightward: Work
    leftward: Work

    @property
    def is_rightward(self) -> bool:
        """Whether core after core costs less from the first one on."""
        return self.rightward.total <= self.leftward.total

    @property
    def sequential(self) -> Work:
        """Of a token, core after core, from the better end."""
        return self.rightward if self.is_rightward else self.leftward

    @property
    def break_even(self) -> float:
        """Tokens in a call from which on rebuilding costs less; infinite for never.

        Example:
          >>> works = [Work(n, 0) for n in (100, 10, 0, 60, 70)]
          >>> MpoCost(*works).break_even
          2.0
        """
        saved = self.sequential.total - self.dense.total
        if saved <= 0:
            return math.inf
        return max(0.0, (self.rebuild.total - self.once.total) / saved)


def mpo_cost(shapes: Sequence[Shape], central: int) -> MpoCost:
    """Counts the work from the shapes of the cores alone.

    Args:
      shapes: (d, i, j, d') of each core, in order.
      central: the index of the core at which left and right are joined.

    Example:
      >>> from splitjax.factors.mpo_plan import mpo_plan
      >>> cost = mpo_cost(mpo_plan(768, 3072).shapes, 2)
      >>> round(cost.rebuild.operations / 1e9, 2), round(cost.break_even, 1)
      (2.72, 2.3)
    """
    pairs = [i * j for _, i, j, _ in shapes]
    left, right = shapes[:central], shapes[central + 1 :]
    operations = min(join_costs(shapes, central))
    for k in range(1, len(left)):
        operations += 2 * math.prod(pairs[:k]) * math.prod(left[k])
    for k in range(len(right) - 1):
        operations += 2 * math.prod(right[k]) * math.prod(pairs[central + 2 + k :])
    ins, outs = [s[1] for s in shapes], [s[2] for s in shapes]
    rows, columns = math.prod(ins), math.prod(outs)
    # Written, read and written again in the order of rows and columns, and read.
    moved = 4 * rows * columns + 2 * _joined(shapes, central)
    return MpoCost(
        Work(operations, moved),
        Work(2 * rows * columns, rows + columns),
        Work(0, sum(math.prod(shape) for shape in shapes)),
        _one_way(shapes),
        _one_way([(e, i, j, d) for d, i, j, e in reversed(shapes)]),
    )


def _one_way(shapes: Sequence[Shape]) -> Work:
    """Of a token, the first core first; each step reads its input and writes."""
    ins, outs = [s[1] for s in shapes], [s[2] for s in shapes]
    operations, moved, size = 0, 0, math.prod(ins)
    for k, shape in enumerate(shapes):
        others = math.prod(outs[:k]) * math.prod(ins[k + 1 :])
        operations += 2 * math.prod(shape) * others
        after = others * shape[2] * shape[3]
        moved, size = moved + size + after, after
    return Work(operations, moved)


def _joined(shapes: Sequence[Shape], central: int) -> int:
    """Floats of the central core joined to one side, the first in `join_costs`."""
    pairs = [i * j for _, i, j, _ in shapes]
    d, i, j, e = shapes[central]
    rows, columns = math.prod(pairs[:central]), math.prod(pairs[central + 1 :])
    first, second = join_costs(shapes, central)
    return rows * i * j * e if first <= second else d * i * j * columns


def join_costs(shapes: Sequence[Shape], central: int) -> tuple[int, int]:
    """Operations to join left part, central core and right part: left first, or last.

    Example:
      >>> join_costs([(1, 2, 2, 4), (4, 3, 3, 4), (4, 2, 2, 1)], 1)
      (2304, 2304)
    """
    pairs = [i * j for _, i, j, _ in shapes]
    d, i, j, e = shapes[central]
    rows, columns = math.prod(pairs[:central]), math.prod(pairs[central + 1 :])
    onto_left = 2 * rows * d * i * j * e if central else 0
    onto_right = 2 * d * i * j * e * columns if central + 1 < len(shapes) else 0
    left_then_right = onto_left + 2 * rows * i * j * e * columns * bool(onto_right)
    right_then_left = onto_right + 2 * rows * d * i * j * columns * bool(onto_left)
    return left_then_right, right_then_left
