"""A mixture of experts in the place of a BERT layer's feed-forward block."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.core.factor import cast_floats, dot
from splitjax.core.keys import fold
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree, nearest
from splitjax.factors.mpo_fit import fresh_experts
from splitjax.factors.mpo_plan import MpoPlan
from splitjax.models.bert_block import Norm, dense, gelu
from splitjax.models.bert_config import BertConfig
from splitjax.models.router import (
    ROUTERS,
    Routing,
    capacity_of,
    combine,
    dispatch,
    route,
)
from splitjax.models.weight import weight

GROUPS = ("batch", "sequence")
Plans = Mapping[str, MpoPlan]


@dataclasses.dataclass(frozen=True)
class Moe:
    """How a feed-forward block is parted among experts.

    Attributes:
      experts: E.
      router: see `models.router.route`.
      capacity: places of an expert in training, in parts of an even share.
      eval_capacity: the same in evaluation; E drops nothing.
      balance: the weight of the load-balance loss; 0 leaves it out.
      group: whose tokens share the places: those of the "batch", or of a "sequence"
        (then no row's output depends on the others).

    Raises:
      ValueError: for values that make no sense.

    Example:
      >>> Moe(experts=4).router
      'top1_st'
    """

    experts: int = 8
    router: str = "top1_st"
    capacity: float = 1.25
    eval_capacity: float = 2.0
    balance: float = 1e-2
    group: str = "batch"

    def __post_init__(self):
        if self.router not in ROUTERS:
            raise ValueError(f"router={self.router!r}: {nearest(self.router, ROUTERS)}")
        if self.group not in GROUPS:
            raise ValueError(f"group={self.group!r}: {nearest(self.group, GROUPS)}")
        if self.router == "top2" and self.experts < 2:
            raise ValueError(f"router='top2' of experts={self.experts}: 2 or more")
        if not self.balance >= 0:
            raise ValueError(f"balance={self.balance}: 0 or more")
        for factor in (self.capacity, self.eval_capacity):
            capacity_of(1, self.experts, factor)

    def places(self, tokens: int, train: bool) -> int:
        """Places of an expert in a group of so many tokens."""
        factor = self.capacity if train else self.eval_capacity
        return capacity_of(tokens, self.experts, factor)


class ExpertDense(nn.Module):
    """y_e = x_e @ kernel_e + bias_e for E experts; the kernels may be a `Factor`.

    Parameters: `kernel` (E, I, J), `bias` (E, J), float32.

    Attributes:
      features: J.
      plan: makes fresh kernels share a central core; None makes dense ones.
      std: of fresh kernels.
      dtype: what it computes in.

    Raises:
      ValueError: when the kernels have another shape.

    Example:
      >>> layer, x = ExpertDense(2), jnp.ones((3, 5, 4))
      >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
      (3, 5, 2)
    """

    features: int
    plan: MpoPlan | None = None
    std: float = 0.02
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x (E, M, I) to (E, M, J)."""
        shape = (x.shape[0], x.shape[-1], self.features)
        init: Any = nn.initializers.normal(self.std)
        if (plan := self.plan) is not None:

            def init(key, shape, dtype):
                return fresh_experts(key, plan, shape[0], std=self.std)

        kernel = weight(self, "kernel", shape, init)
        y = dot(cast_floats(kernel, self.dtype), x.astype(self.dtype))
        zeros = nn.initializers.zeros
        bias = self.param("bias", zeros, (len(x), self.features), jnp.float32)
        return y + bias.astype(self.dtype)[:, None]


class MoeFfn(nn.Module):
    """h -> LN(h + y), y = sum_k gate_k wo_k(gelu(wi_k(h))) over a token's experts k.

    Parameters: `router/kernel` (D, E), `router/bias`; `wi/kernel` (E, D, F), `wi/bias`
    (E, F), `wo/kernel` (E, F, D), `wo/bias` (E, D), the kernels dense or `MpoExperts`;
    `norm`. Padding is given to no expert: its y is 0.
    """

    config: BertConfig
    moe: Moe
    plans: Any = None
    dtype: Any = jnp.float32
    skip: bool = True

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> tuple[Tree, Routing]:
        """Maps {"h": (B, T, D), "mask"} to the same, and tells the routing."""
        c, moe, h = self.config, self.moe, x["h"]
        b, t, d = h.shape
        shape = (1, b * t) if moe.group == "batch" else (b, t)
        tokens = h.reshape(*shape, d)
        # A router in less than float32 chooses among equals; as in Switch.
        logits = dense(c, moe.experts, "router", jnp.float32)(tokens)
        routing = route(
            logits,
            x["mask"].reshape(shape),
            router=moe.router,
            capacity=moe.places(shape[1], train),
            key=self.make_rng("router") if self.has_rng("router") else None,
        )
        y = dispatch(tokens.astype(self.dtype), routing)
        y = self._experts(c.ffn, "wi")(y)
        y = self._experts(c.width, "wo")(gelu(y))
        y = combine(y, routing, shape[1]).reshape(b, t, d)
        y = nn.Dropout(c.dropout)(y, deterministic=not train)
        y = y + h if self.skip else y
        return {**x, "h": Norm(c.eps, self.dtype, name="norm")(y)}, routing

    def _experts(self, features: int, name: str) -> ExpertDense:
        plan = self.plans[name] if self.plans else None
        std = self.config.init_std
        return ExpertDense(features, plan, std, self.dtype, name=name)


def moe_ffn(
    config: BertConfig,
    layer: int,
    moe: Moe,
    *,
    plans: Plans | None = None,
    dtype: Any = jnp.float32,
) -> Stage:
    """The stage "layer_l/ffn" with experts, for `bert(..., blocks={l: ...})`.

    Its `aux` has the load-balance loss, `moe.balance * E sum_e f_e P_e` with f the
    share of tokens whose first choice is expert e and P the mean probability, which
    joins the model's loss in training; `dropped`, the share of choices without a place;
    and `busiest`, the largest expert's share of the places taken.

    Args:
      config: the model's.
      layer: its number, from 0.
      moe: the experts and their router.
      plans: {"wi": plan, "wo": plan} where fresh kernels share their central cores.
        Parameters decide for themselves: `models.upcycle` makes either kind.
      dtype: what is computed in; the router computes in float32.

    Example:
      >>> stage = moe_ffn(BertConfig(width=8, heads=2, ffn=16), 1, Moe(experts=2))
      >>> spec = {"h": jax.ShapeDtypeStruct((2, 3, 8), jnp.float32),
      ...     "mask": jax.ShapeDtypeStruct((2, 3), jnp.bool_)}
      >>> params, _ = stage.init(jax.random.key(0), spec)
      >>> stage.name, params["wi"]["kernel"].shape
      ('layer_1/ffn', (2, 8, 16))

    Reference:
      Gao et al., Parameter-efficient mixture-of-experts architecture for pre-trained
      language models, 2022, arXiv 2203.01104; the balance as in its code.
    Differs:
      The balance is used (the code computes and discards it). Experts have biases of
      their own. The gate weighs an expert's output, not its input.
    """
    skip = layer not in config.skipless
    module = MoeFfn(config, moe, dict(plans) if plans else None, dtype, skip)

    def init(key, spec):
        streams = {"params": fold(key, "params")}
        made = module.lazy_init(streams, spec, train=False)
        return made["params"], {}

    def apply(params, state, x, *, key, train):
        streams = {}
        if key is not None and train:
            streams = {name: fold(key, name) for name in ("dropout", "router")}
        made: Any = module.apply({"params": params}, x, train=train, rngs=streams)
        y, routing = made
        counts = routing.counts.astype(jnp.float32)
        wanted = jnp.maximum(routing.wanted.astype(jnp.float32), 1)
        aux = {
            "dropped": routing.dropped.astype(jnp.float32) / wanted,
            "busiest": counts.max() / jnp.maximum(counts.sum(), 1),
        }
        if moe.balance:
            aux["loss"] = moe.balance * routing.balance
        return y, state, aux

    return Stage(f"layer_{layer}/ffn", init, apply, tags=frozenset({"moe"}))
