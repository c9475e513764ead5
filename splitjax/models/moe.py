"""A mixture of experts in the place of a feed-forward block: of BERT, of a decoder."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.adapters.linen import from_linen
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree
from splitjax.models.bert_block import Norm, gelu
from splitjax.models.bert_config import BertConfig
from splitjax.models.decoder_block import feed_forward, norm
from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.experts import ExpertDense, Moe, Plans, load, mix
from splitjax.models.router import Routing


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
        c, h = self.config, x["h"]

        def layer(features, name):
            return _experts(self, features, name)

        def compute(y):
            return layer(c.width, "wo")(gelu(layer(c.ffn, "wi")(y)))

        y, routing = _mixed(self, h, x["mask"], compute, train)
        y = nn.Dropout(c.dropout)(y, deterministic=not train)
        y = y + h if self.skip else y
        return {**x, "h": Norm(c.eps, self.dtype, c.fused, name="norm")(y)}, routing


class DecoderMoeFfn(nn.Module):
    """h -> h + sum_k gate_k ffn_k(norm(h)) over a token's experts k.

    ffn_k(y) = wo_k(silu(gate_k(y)) * wi_k(y)) for llama, wo_k(gelu(wi_k(y))) for gpt2.

    Parameters: `router/kernel` (D, E), `router/bias`; `wi`, for llama `gate` (E, D, F),
    `wo` (E, F, D): each `kernel`, dense or `MpoExperts`, and `bias` for gpt2; `norm`.
    Padding is given to no expert: its h stays.
    """

    config: DecoderConfig
    moe: Moe
    plans: Any = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> tuple[Tree, Routing]:
        """Maps {"h": (B, T, D), "mask"} to the same, and tells the routing."""
        c = self.config

        def layer(features, name):
            return _experts(self, features, name, use_bias=c.family == "gpt2")

        def compute(y):
            return feed_forward(c, layer, y)

        y = norm(c, self.dtype)(x["h"])
        y, routing = _mixed(self, y, x["mask"], compute, train)
        y = nn.Dropout(c.dropout)(y, deterministic=not train)
        return {**x, "h": x["h"] + y}, routing


def _experts(module: Any, features: int, name: str, **more: Any) -> ExpertDense:
    plan = module.plans[name] if module.plans else None
    std = module.config.init_std
    return ExpertDense(features, plan, std, module.dtype, name=name, **more)


def _mixed(module: Any, h: jax.Array, mask: jax.Array, compute: Any, train: bool):
    drawn = train and module.has_rng("router")
    return mix(
        module.moe,
        h,
        mask,
        compute,
        train=train,
        key=module.make_rng("router") if drawn else None,
        std=module.config.init_std,
        dtype=module.dtype,
    )


def moe_ffn(
    config: BertConfig | DecoderConfig,
    layer: int,
    moe: Moe,
    *,
    plans: Plans | None = None,
    dtype: Any = jnp.float32,
) -> Stage:
    """The stage "layer_l/ffn" with experts, for `core.stage.substitute`.

    Its `aux` is `models.experts.load`: the load-balance loss joins the model's in
    training. In a decoder a token's place does not depend on those after it in its row,
    but for "top2", where the first choices of all come before the second ones; and it
    depends on other rows, if group="batch". With `eval_capacity=E` nothing is dropped,
    and a session (`models.session`) continues what the whole text was.

    Args:
      config: the model's.
      layer: its number, from 0.
      moe: the experts and their router.
      plans: {"wi": plan, "wo": plan}, and "gate" for llama, where fresh kernels share
        their central cores. Parameters decide for themselves: `models.upcycle` makes
        either kind.
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
      their own. The gate weighs an expert's output, not its input. Gated blocks of the
      Llama form are ours.
    """
    own = dict(plans) if plans else None
    if isinstance(config, DecoderConfig):
        module: nn.Module = DecoderMoeFfn(config, moe, own, dtype)
    else:
        skip = layer not in config.skipless
        module = MoeFfn(config, moe, own, dtype, skip)
    return from_linen(
        module,
        f"layer_{layer}/ffn",
        rngs=("dropout", "router"),
        aux=load(moe),
        tags={"moe"},
    )
