"""T5, an encoder and a decoder, as ordered stages."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.adapters.linen import from_linen
from splitjax.core.factor import materialize
from splitjax.core.keys import fold
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree
from splitjax.models.dense import Dense
from splitjax.models.lookup import Lookup
from splitjax.models.t5_block import Attention, Embed, Ffn, FinalNorm
from splitjax.models.t5_config import T5Config


def t5(config: T5Config, *, dtype: Any = jnp.float32) -> tuple[Stage, ...]:
    """A T5: from two texts to logits of the second one's next token.

    Its stages are "encoder/embed", "encoder/layer_0/attention", "encoder/layer_0/ffn",
    and so on, "encoder/norm"; then "decoder/embed", "decoder/layer_0/attention",
    "decoder/layer_0/cross", "decoder/layer_0/ffn", and so on, "decoder/norm" and
    "head". The input is {"ids": (B, S) int, "mask": (B, S) bool, "decoder_ids": (B, T),
    "decoder_mask"}. Between the encoder's stages goes {"h": (B, S, D), "mask",
    "decoder_ids", "decoder_mask"}, between the decoder's {"h": (B, T, D), "mask",
    "side": (B, S, D), "side_mask"}; the head gives (B, T, V), float32.

    A cut between the stacks ("encoder") needs `shared=False`, one inside of the decoder
    a head that is not tied, too.

    Args:
      config: sizes and constants.
      dtype: what is computed in; parameters, the head and its logits are float32.

    Example:
      >>> [stage.name for stage in t5(T5Config(layers=1, decoder_layers=1))][3:6]
      ['encoder/norm', 'decoder/embed', 'decoder/layer_0/attention']

    Reference:
      Raffel et al., Exploring the Limits of Transfer Learning with a Unified
      Text-to-Text Transformer, 2019 (arXiv:1910.10683).

    Differs: the tables of relative positions are not trained, so that the copies of
      each layer stay equal. There is no session yet: `models.session` serves decoders.
    """
    stages = [from_linen(Embed(config, dtype), "encoder/embed")]
    for layer in range(config.layers):
        stages += [
            _attention(config, f"encoder/layer_{layer}/attention", "encoder", dtype),
            from_linen(Ffn(config, dtype), f"encoder/layer_{layer}/ffn"),
        ]
    stages.append(from_linen(FinalNorm(config), "encoder/norm"))
    stages.append(decoder_embed(config, dtype=dtype))
    for layer in range(config.decoder_layers):
        stages += [
            _attention(config, f"decoder/layer_{layer}/attention", "decoder", dtype),
            _attention(config, f"decoder/layer_{layer}/cross", "cross", dtype),
            from_linen(Ffn(config, dtype), f"decoder/layer_{layer}/ffn"),
        ]
    return (*stages, from_linen(FinalNorm(config), "decoder/norm"), head(config))


def decoder_embed(config: T5Config, *, dtype: Any = jnp.float32) -> Stage:
    """The stage "decoder/embed": the encoder's output moves to the side.

    A shared one reads the encoder's table and has no parameters.

    Example:
      >>> decoder_embed(T5Config()).reads
      ('encoder/embed',)
    """

    table = Lookup(config.vocab, config.width, config.init_factor, name="word")
    owner = ("encoder/embed",) if config.shared else ()

    def init(key, spec):
        if config.shared:
            return {}, {}
        ids = jax.ShapeDtypeStruct(spec["decoder_ids"].shape, jnp.int32)
        return {"word": table.lazy_init(fold(key, "params"), ids)["params"]}, {}

    def apply(params, state, x, *, key, train, tied: Any = None):
        held = tied["encoder/embed"] if config.shared else params
        h: Any = table.apply({"params": held["word"]}, x["decoder_ids"])
        keep = 1 - config.dropout
        if train and config.dropout:
            if key is None:
                raise ValueError("dropout draws by chance: training needs a key")
            kept = jax.random.bernoulli(fold(key, "dropout"), keep, h.shape)
            h = jnp.where(kept, h / keep, 0)
        moved = {
            "h": h.astype(dtype),
            "mask": x["decoder_mask"],
            "side": x["h"],
            "side_mask": x["mask"],
        }
        return moved, state, {}

    return Stage("decoder/embed", init, apply, reads=owner)


def head(config: T5Config) -> Stage:
    """The stage "head": logits (B, T, V), float32.

    A tied one reads a table of embeddings; else it has `out/kernel` (D, V).

    Example:
      >>> head(T5Config(shared=False)).reads
      ('decoder/embed',)
    """
    scale = config.width**-0.5 if config.scaled else 1.0
    if not config.tied:
        return from_linen(_Head(config, scale), "head")
    owner = "encoder/embed" if config.shared else "decoder/embed"

    def apply(params, state, x, *, key, train, tied):
        del params, key, train
        table = materialize(tied[owner]["word"]["embedding"]).astype(jnp.float32)
        h = x["h"].astype(jnp.float32) * scale
        return jnp.einsum("btd,vd->btv", h, table), state, {}

    return Stage("head", lambda key, spec: ({}, {}), apply, reads=(owner,))


def _attention(config: T5Config, name: str, kind: str, dtype: Any) -> Stage:
    return from_linen(Attention(config, kind, dtype), name)


class _Head(nn.Module):
    config: T5Config
    scale: float

    @nn.compact
    def __call__(self, x: Tree) -> jax.Array:
        init = nn.initializers.normal(self.config.init_factor)
        out = Dense(self.config.vocab, False, kernel_init=init, name="out")
        return out(x["h"].astype(jnp.float32) * self.scale)
