"""What a product with an MPO costs: rebuilding the matrix, or core after core."""

import math
from collections.abc import Sequence
from typing import NamedTuple

Shape = Sequence[int]


class MpoCost(NamedTuple):
    """Floating-point operations of a product with an MPO, a multiply-add as two.

    Attributes:
      rebuild: to contract the cores to the dense matrix, once a call.
      dense: of a token's product with the dense matrix.
      rightward: of a token's product core after core, the first one first.
      leftward: the same, the last core first.
    """

    rebuild: int
    dense: int
    rightward: int
    leftward: int

    @property
    def sequential(self) -> int:
        """Of a token, core after core, from the better end."""
        return min(self.rightward, self.leftward)

    @property
    def break_even(self) -> float:
        """Tokens in a call from which on rebuilding costs less; infinite for never.

        Example:
          >>> MpoCost(rebuild=100, dense=10, rightward=60, leftward=70).break_even
          2.0
        """
        if self.sequential <= self.dense:
            return math.inf
        return self.rebuild / (self.sequential - self.dense)


def mpo_cost(shapes: Sequence[Shape], central: int) -> MpoCost:
    """Counts the operations from the shapes of the cores alone.

    Args:
      shapes: (d, i, j, d') of each core, in order.
      central: the index of the core at which left and right are joined.

    Example:
      >>> from splitjax.factors.mpo_plan import mpo_plan
      >>> plan = mpo_plan(768, 3072)
      >>> cost = mpo_cost(plan.shapes, plan.central)
      >>> round(cost.rebuild / 1e9, 2), round(cost.break_even, 1)
      (2.72, 2.0)
    """
    pairs = [i * j for _, i, j, _ in shapes]
    left, right = shapes[:central], shapes[central + 1 :]
    rebuild = 0
    for k in range(1, len(left)):
        d, i, j, e = left[k]
        rebuild += 2 * math.prod(pairs[:k]) * d * i * j * e
    for k in range(len(right) - 1):
        d, i, j, e = right[k]
        rebuild += 2 * d * i * j * e * math.prod(pairs[central + 2 + k :])
    rebuild += min(join_costs(shapes, central))
    ins, outs = [s[1] for s in shapes], [s[2] for s in shapes]
    rightward = leftward = 0
    for k, (d, i, j, e) in enumerate(shapes):
        core = 2 * d * i * j * e
        rightward += core * math.prod(outs[:k]) * math.prod(ins[k + 1 :])
        leftward += core * math.prod(ins[:k]) * math.prod(outs[k + 1 :])
    dense = 2 * math.prod(ins) * math.prod(outs)
    return MpoCost(rebuild, dense, rightward, leftward)


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
