"""What SmartDeal would cost on hardware that shifts: modelled, not measured."""

from typing import NamedTuple

import jax
import numpy as np

from splitjax.core.tree import Tree
from splitjax.factors.smartdeal import SmartDeal
from splitjax.factors.smartdeal_pack import wire_bits


class Modelled(NamedTuple):
    """Counts of one pass over all SmartDeal kernels, by the model of `modelled`.

    No energy is among them: that takes the figures of a chip, and a chip.

    Attributes:
      kernels: how many.
      weights: numbers of the dense kernels.
      dense_bits: read from memory for the dense kernels.
      packed_bits: read for the codes and the bases.
      codes_kept: codes that are not zero.
      shift_adds: a shift and an addition for each kept code and column of its basis.
    """

    kernels: int
    weights: int
    dense_bits: int
    packed_bits: int
    codes_kept: int
    shift_adds: int

    @property
    def ratio(self) -> float:
        """Dense bits over packed bits."""
        return self.dense_bits / self.packed_bits


def modelled(params: Tree) -> Modelled:
    """Bits and accesses of one pass that reads each kernel once and rebuilds it.

    The model: the packed codes and the bases come from memory once; a basis stays in a
    register file while its slice is rebuilt; each code that is not zero shifts the S
    numbers of a row of the basis and adds them; a zero costs its bit alone. The
    products with the activations are those of the dense kernel and are not counted.

    Args:
      params: a tree with `SmartDeal` factors, also inside of others.

    Raises:
      ValueError: when there is none.

    Example:
      >>> import jax.numpy as jnp
      >>> codes = jnp.ones((1, 1, 192, 3)).at[..., 1:].set(0.0)
      >>> found = modelled(SmartDeal(codes, jnp.ones((1, 1, 3, 3)), (576,)))
      >>> found.packed_bits, round(found.ratio, 1), found.shift_adds
      (1056, 17.5, 576)
    """
    nodes = jax.tree.leaves(params, is_leaf=lambda n: isinstance(n, SmartDeal))
    nodes = [node for node in nodes if isinstance(node, SmartDeal)]
    if not nodes:
        raise ValueError("there is no SmartDeal factor in these parameters")
    kept = [int(np.count_nonzero(np.asarray(node.codes))) for node in nodes]
    adds = sum(n * node.codes.shape[-1] for n, node in zip(kept, nodes, strict=True))
    specs = [node.spec for node in nodes]
    return Modelled(
        kernels=len(nodes),
        weights=sum(spec.size for spec in specs),
        dense_bits=sum(spec.size * spec.dtype.itemsize * 8 for spec in specs),
        packed_bits=sum(map(wire_bits, nodes)),
        codes_kept=sum(kept),
        shift_adds=adds,
    )
