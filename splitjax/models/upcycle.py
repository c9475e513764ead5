"""Experts from a dense block, and where they lie on a mesh."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from splitjax.core.factor import materialize
from splitjax.core.keys import fold
from splitjax.core.tree import Tree
from splitjax.factors.mpo import MpoExperts
from splitjax.factors.mpo_fit import fit, share
from splitjax.factors.mpo_plan import MpoPlan


def upcycle(
    ffn: Tree,
    experts: int,
    *,
    key: jax.Array,
    plans: Mapping[str, MpoPlan] | None = None,
    std: float = 0.02,
) -> Tree:
    """The parameters of experts that each compute what a dense block computes.

    Args:
      ffn: of a dense block: submodules with `kernel` (I, J) and `bias` (J,), "wo" the
        last of them, and others, as "norm", which stay. A gated block has "gate" too.
      experts: E.
      key: of the router's kernel.
      plans: a plan for each kernel: it is decomposed, and its central core stored
        once. None copies the kernels whole: a plain mixture of experts.
      std: of the router's kernel; its bias is 0.

    Returns:
      The same with kernels (E, I, J), dense or `MpoExperts`, biases (E, J), and
      "router" with `kernel` (D, E) and `bias` (E,).

    Raises:
      ValueError: for fewer than one expert, a block without "wo", or plans that do not
        name just its kernels.

    Example:
      >>> from splitjax.factors.mpo_plan import mpo_plan
      >>> ffn = {"wi": {"kernel": jnp.ones((4, 6)), "bias": jnp.zeros(6)},
      ...     "wo": {"kernel": jnp.ones((6, 4)), "bias": jnp.zeros(4)}, "norm": {}}
      >>> plans = {"wi": mpo_plan(4, 6, 3), "wo": mpo_plan(6, 4, 3)}
      >>> made = upcycle(ffn, 8, key=jax.random.key(0), plans=plans)
      >>> made["wi"]["kernel"].spec.shape, made["router"]["kernel"].shape
      ((8, 4, 6), (4, 8))

    Reference:
      Gao et al., Parameter-efficient mixture-of-experts architecture for pre-trained
      language models, 2022, arXiv 2203.01104; Komatsuzaki et al., Sparse upcycling,
      2022, arXiv 2212.05055, for the copies.
    Differs:
      See `factors.mpo_fit.share`; biases are each expert's own.
    """
    if experts < 1:
        raise ValueError(f"experts={experts}: 1 or more")
    names = sorted(name for name, part in ffn.items() if "kernel" in part)
    if "wo" not in names:
        raise ValueError(f"no kernel 'wo' among {sorted(ffn)}: no feed-forward block")
    if plans is not None and sorted(plans) != names:
        raise ValueError(
            f"plans for {sorted(plans)}, and the block's kernels are {names}: each "
            "needs one of its own (a gated block has two first ones)"
        )
    made = dict(ffn)
    for name in names:
        part = materialize(ffn[name])
        if plans is None:
            kernel = jnp.stack([part["kernel"]] * experts)
        else:
            kernel = share(fit(part["kernel"], plans[name]), experts)
        made[name] = {"kernel": kernel}
        if "bias" in part:
            made[name]["bias"] = jnp.stack([part["bias"]] * experts)
    width = materialize(ffn["wo"])["kernel"].shape[1]
    kernel = jax.random.normal(fold(key, "router"), (width, experts)) * std
    return {**made, "router": {"kernel": kernel, "bias": jnp.zeros(experts)}}


def expert_specs(params: Tree, axis: str = "expert") -> Tree:
    """How experts lie on a mesh: their own leaves over an axis, the rest everywhere.

    A central core is everywhere, and its gradient is summed over the mesh.

    Args:
      params: of a block, or of a model with such blocks among its stages.
      axis: the mesh's axis; its size divides E.

    Returns:
      A tree of `PartitionSpec`.

    Raises:
      ValueError: when there is no block with experts.

    Example:
      >>> ffn = {"wo": {"kernel": jnp.ones((4, 6)), "bias": jnp.zeros(6)}}
      >>> specs = expert_specs(upcycle(ffn, 2, key=jax.random.key(0)))
      >>> specs["wo"]["kernel"] == PartitionSpec("expert")
      True
      >>> specs["router"]["kernel"] == PartitionSpec()
      True
    """
    own, everywhere, found = PartitionSpec(axis), PartitionSpec(), []

    def of(node: Tree, inside: bool) -> Tree:
        if isinstance(node, dict):
            block = "router" in node
            found.extend([True] * block)
            rest = {"router", "norm"} if block else set()
            return {
                name: of(part, (inside or block) and name not in rest)
                for name, part in node.items()
            }
        specs = jax.tree.map(lambda _: own if inside else everywhere, node)
        if isinstance(node, MpoExperts):
            return dataclasses.replace(specs, central=everywhere)
        return specs

    made = of(params, False)
    if not found:
        raise ValueError(f"no block with a router among {sorted(params)}")
    return made
