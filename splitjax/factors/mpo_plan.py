"""How a matrix is parted into the cores of a matrix product operator."""

import dataclasses
import math
import warnings
from collections.abc import Sequence

Factors = tuple[int, ...]

# For matrices of either orientation, the larger side first. The first six are those of
# the reference; the last one is the first of them, halved in two places on each side.
PRESETS: dict[tuple[int, int], tuple[Factors, Factors]] = {
    (3072, 768): ((4, 4, 8, 6, 4), (3, 4, 4, 4, 4)),
    (4096, 1024): ((4, 4, 8, 8, 4), (4, 4, 4, 4, 4)),
    (768, 768): ((3, 4, 4, 4, 4), (4, 4, 4, 4, 3)),
    (1024, 1024): ((4, 4, 4, 4, 4), (4, 4, 4, 4, 4)),
    (32768, 768): ((8, 8, 8, 8, 8), (3, 4, 4, 4, 4)),
    (32768, 1024): ((8, 8, 8, 8, 8), (4, 4, 4, 4, 4)),
    (1536, 384): ((4, 4, 8, 3, 4), (3, 2, 4, 4, 4)),
}


@dataclasses.dataclass(frozen=True)
class MpoPlan:
    """The shapes of n cores `T_k (d_{k-1}, i_k, j_k, d_k)` of a matrix (I, J).

    Attributes:
      in_factors: i_1 to i_n; their product is I, or more where rows are filled up.
      out_factors: j_1 to j_n, likewise for J.
      bonds: d_0 to d_n; the first and the last are 1.
      central: the index of the core that experts share.
      dims: (I, J) of the matrix.

    Example:
      >>> plan = mpo_plan(768, 3072)
      >>> plan.bonds, plan.parameters, plan.auxiliary
      ((1, 12, 192, 384, 16, 1), 2544016, 184720)
    """

    in_factors: Factors
    out_factors: Factors
    bonds: Factors
    central: int
    dims: tuple[int, int]

    @property
    def shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """The shape of each core."""
        factors = self.in_factors, self.out_factors
        return tuple(zip(self.bonds[:-1], *factors, self.bonds[1:], strict=True))

    @property
    def padded(self) -> tuple[int, int]:
        """(I, J) with the rows and columns that are filled up."""
        return math.prod(self.in_factors), math.prod(self.out_factors)

    @property
    def dense(self) -> int:
        """Numbers in the dense matrix."""
        return math.prod(self.dims)

    @property
    def parameters(self) -> int:
        """Numbers in all cores."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def auxiliary(self) -> int:
        """Numbers in all cores but the central one: what an expert has of its own."""
        return self.parameters - math.prod(self.shapes[self.central])

    def ratio(self, experts: int) -> float:
        """Parameters of E dense experts over those of E that share the central core.

        Example:
          >>> round(mpo_plan(768, 3072).ratio(8), 3)
          4.919
        """
        shared = self.parameters + (experts - 1) * self.auxiliary
        return experts * self.dense / shared


def mpo_plan(
    in_dim: int,
    out_dim: int,
    n: int = 5,
    *,
    in_factors: Sequence[int] | None = None,
    out_factors: Sequence[int] | None = None,
    max_bond: int | None = None,
    pad: bool = False,
) -> MpoPlan:
    """A plan: from the given factors, from `PRESETS`, or from balanced factors.

    Bond k is `min(prod_{l<=k} i_l j_l, prod_{l>k} i_l j_l, max_bond)`: without a
    max_bond every matrix has such cores exactly. Balanced factors are the primes of a
    dimension, the largest first, each on the smallest product so far; the largest
    product stands in the middle. The central core is the middle one.

    Args:
      in_dim: I.
      out_dim: J.
      n: how many cores; that of the factors, where they are given.
      in_factors: n numbers whose product is I.
      out_factors: n numbers whose product is J.
      max_bond: chi, the largest bond; one above the full bonds changes nothing.
      pad: let given factors have a larger product (a vocabulary that is no product of
        small numbers): the matrix is filled up with zeros, and sliced after.

    Raises:
      ValueError: for dimensions, n, factors or max_bond below 1, factors of unlike
        count, or of another product than the dimension.

    Warns:
      UserWarning: when a dimension has one factor above 1 only, as primes do.

    Example:
      >>> mpo_plan(24, 6, 3).in_factors, mpo_plan(24, 6, 3, max_bond=2).bonds
      ((3, 4, 2), (1, 2, 2, 1))

    Reference:
      Gao et al., Parameter-efficient mixture-of-experts architecture for pre-trained
      language models, 2022, arXiv 2203.01104; the factors are those of its code.
    Differs:
      The preset of 1536 x 384, balanced factors and padding of any side are ours.
    """
    if n < 1:
        raise ValueError(f"n={n}: an MPO has 1 core or more")
    if max_bond is not None and max_bond < 1:
        raise ValueError(f"max_bond={max_bond}: a bond is 1 or more, None: full")
    n = len(in_factors or out_factors or range(n))
    known = _preset(in_dim, out_dim) if n == 5 else None
    sides = []
    for side, (name, dim, given) in enumerate(
        (("in", in_dim, in_factors), ("out", out_dim, out_factors))
    ):
        if dim < 1:
            raise ValueError(f"{name}_dim={dim}: it must be 1 or more")
        if given is not None:
            sides.append(_checked(name, dim, tuple(given), pad))
        elif known is not None:
            sides.append(known[side])
        else:
            sides.append(_balanced(dim, n))
        _warn(name, dim, sides[-1])
    rows, columns = sides
    if len(rows) != len(columns):
        raise ValueError(
            f"{len(rows)} factors of in_dim, {rows}, and {len(columns)} of out_dim, "
            f"{columns}: a core has one of each, so give as many"
        )
    pairs = [i * j for i, j in zip(rows, columns, strict=True)]
    bonds = [
        min(math.prod(pairs[:k]), math.prod(pairs[k:])) for k in range(len(pairs) + 1)
    ]
    if max_bond is not None:
        bonds = [min(bond, max_bond) for bond in bonds]
    return MpoPlan(rows, columns, tuple(bonds), len(pairs) // 2, (in_dim, out_dim))


def plan_keeping(share: float, in_dim: int, out_dim: int, n: int = 5) -> MpoPlan:
    """The plan with the largest bonds whose cores hold at most a share of the matrix.

    Args:
      share: of the I J numbers, above 0. Full bonds take more than all of them.
      in_dim: I.
      out_dim: J.
      n: how many cores.

    Raises:
      ValueError: for a share of 0 or less, or one too small for bonds of 1.

    Example:
      >>> plan = plan_keeping(0.5, 384, 1536)
      >>> max(plan.bonds), round(plan.parameters / plan.dense, 3)
      (91, 0.494)
    """
    full = mpo_plan(in_dim, out_dim, n)
    low, high = 0, max(full.bonds)
    while low < high:  # the cores grow with the largest bond
        bond = (low + high + 1) // 2
        if _cut(full, bond).parameters <= share * full.dense:
            low = bond
        else:
            high = bond - 1
    if low < 1:
        least = _cut(full, 1).parameters / full.dense
        raise ValueError(
            f"share {share} of a matrix {full.dims} is less than an MPO of bonds of 1 "
            f"holds, which is {least:.4f} of it: keep more, or leave it dense"
        )
    return _cut(full, low)


def _cut(plan: MpoPlan, bond: int) -> MpoPlan:
    bonds = tuple(min(one, bond) for one in plan.bonds)
    return dataclasses.replace(plan, bonds=bonds)


def _preset(in_dim: int, out_dim: int) -> tuple[Factors, Factors] | None:
    if (in_dim, out_dim) in PRESETS:
        return PRESETS[in_dim, out_dim]
    turned = PRESETS.get((out_dim, in_dim))
    return turned and turned[::-1]


def _checked(name: str, dim: int, factors: Factors, pad: bool) -> Factors:
    if not factors or min(factors) < 1:
        raise ValueError(f"{name}_factors={factors}: numbers from 1 on, at least one")
    product = math.prod(factors)
    if product != dim and not (pad and product > dim):
        hint = ", or pad=True to fill up with zeros" if product > dim else ""
        raise ValueError(
            f"{name}_factors={factors} have the product {product}, and {name}_dim is "
            f"{dim}: give factors of {dim}{hint}"
        )
    return factors


def _balanced(dim: int, n: int) -> Factors:
    factors = [1] * n
    for prime in _primes(dim):
        factors[factors.index(min(factors))] *= prime
    placed = [1] * n
    middle_out = sorted(range(n), key=lambda k: (abs(k - n // 2), k))
    for place, factor in zip(middle_out, sorted(factors, reverse=True), strict=True):
        placed[place] = factor
    return tuple(placed)


def _primes(number: int) -> list[int]:
    """The prime factors of a number, the largest first."""
    found, prime = [], 2
    while prime * prime <= number:
        while number % prime == 0:
            found.append(prime)
            number //= prime
        prime += 1
    if number > 1:
        found.append(number)
    return found[::-1]


def _warn(name: str, dim: int, factors: Factors) -> None:
    if len(factors) > 1 and sum(factor > 1 for factor in factors) <= 1:
        warnings.warn(
            f"{name}_dim={dim} has the factors {factors}, one above 1 at most: nearly "
            "all numbers stand in one core, and an MPO saves nothing. Fill the "
            "dimension up (pad=True with other factors), or keep the leaf dense",
            stacklevel=3,
        )
