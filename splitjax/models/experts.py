"""Experts: dense layers of many, and the way of a token through those it is sent to."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.core.factor import cast_floats, dot
from splitjax.core.tree import nearest
from splitjax.factors.mpo_fit import fresh_experts
from splitjax.factors.mpo_plan import MpoPlan
from splitjax.models.dense import Dense
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

    Parameters: `kernel` (E, I, J), maybe `bias` (E, J), float32.

    Attributes:
      features: J.
      plan: makes fresh kernels share a central core; None makes dense ones.
      std: of fresh kernels.
      dtype: what it computes in.
      use_bias: whether there is a bias.

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
    use_bias: bool = True

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
        if not self.use_bias:
            return y
        zeros = nn.initializers.zeros
        bias = self.param("bias", zeros, (len(x), self.features), jnp.float32)
        return y + bias.astype(self.dtype)[:, None]


def mix(
    moe: Moe,
    h: jax.Array,
    mask: jax.Array,
    compute: Callable[[jax.Array], jax.Array],
    *,
    train: bool,
    key: jax.Array | None,
    std: float,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, Routing]:
    """sum_k gate_k compute_k(h) over the experts k of each token; called in a module.

    The module gets the parameters `router/kernel` (D, E) and `router/bias`. Padding is
    given to no expert: its sum is 0.

    Args:
      moe: the experts and their router.
      h: (B, T, D).
      mask: (B, T) bool.
      compute: maps (E, M, D), what stands at each expert's places, to the same.
      train: whether the places are those of training, and choices are drawn.
      key: for the draws of a router; None: none is drawn.
      std: of a fresh router's kernel.
      dtype: what the experts compute in; the router computes in float32.
    """
    b, t, d = h.shape
    shape = (1, b * t) if moe.group == "batch" else (b, t)
    tokens = h.reshape(*shape, d)
    # A router in less than float32 chooses among equals; as in Switch.
    init = nn.initializers.normal(std)
    logits = Dense(moe.experts, kernel_init=init, name="router")(tokens)
    routing = route(
        logits,
        mask.reshape(shape),
        router=moe.router,
        capacity=moe.places(shape[1], train),
        key=key,
    )
    y = compute(dispatch(tokens.astype(dtype), routing))
    return combine(y, routing, shape[1]).reshape(b, t, d), routing


def load(moe: Moe) -> Callable[[Routing], dict[str, jax.Array]]:
    """What a stage with experts reports of a routing, as its `aux`.

    The load-balance loss, `moe.balance * E sum_e f_e P_e` with f the share of tokens
    whose first choice is expert e and P the mean probability; `dropped`, the share of
    choices without a place; and `busiest`, the largest expert's share of the places
    taken.

    Example:
      >>> routing = route(jnp.zeros((1, 2, 2)), jnp.ones((1, 2), bool), capacity=1)
      >>> {name: float(v) for name, v in load(Moe(2, balance=0.0))(routing).items()}
      {'dropped': 0.5, 'busiest': 1.0}
    """

    def aux(routing):
        counts = routing.counts.astype(jnp.float32)
        wanted = jnp.maximum(routing.wanted.astype(jnp.float32), 1)
        made = {
            "dropped": routing.dropped.astype(jnp.float32) / wanted,
            "busiest": counts.max() / jnp.maximum(counts.sum(), 1),
        }
        return made | ({"loss": moe.balance * routing.balance} if moe.balance else {})

    return aux
