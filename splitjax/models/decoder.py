"""Decoders of the GPT-2 and of the Llama form as ordered stages."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.adapters.linen import from_linen
from splitjax.core.factor import materialize
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree
from splitjax.models.decoder_block import Attention, Embed, Ffn, norm
from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.dense import Dense


def decoder(config: DecoderConfig, *, dtype: Any = jnp.float32) -> tuple[Stage, ...]:
    """A language model: from tokens to logits of the next one.

    Its stages are "embed", then "layer_0/attention", "layer_0/ffn", and so on, then
    "norm" and "head". The input is {"ids": (B, T) int, "mask": (B, T) bool}, between
    stages goes {"h": (B, T, D), "mask"}, and the head gives logits (B, T, V), float32.
    It can be cut after any stage; with a tied head, only where "embed" and "head" stay
    together. Stages that remember earlier tokens have a `start`: see `models.session`.

    Args:
      config: sizes and constants.
      dtype: what is computed in; parameters, the head and its logits are float32.

    Example:
      >>> config = DecoderConfig(width=8, heads=2, kv_heads=1, layers=1, ffn=16)
      >>> [stage.name for stage in decoder(config)]
      ['embed', 'layer_0/attention', 'layer_0/ffn', 'norm', 'head']

    Reference:
      Radford et al., Language Models are Unsupervised Multitask Learners, 2019;
      Touvron et al., LLaMA: Open and Efficient Foundation Language Models, 2023
      (arXiv:2302.13971).

    Differs: GPT-2's queries, keys and values are three kernels, not one.
    """
    stages = [embed(config, dtype=dtype)]
    for layer in range(config.layers):
        stages += [
            attention(config, layer, dtype=dtype),
            from_linen(Ffn(config, dtype), f"layer_{layer}/ffn"),
        ]
    return (*stages, from_linen(_FinalNorm(config), "norm"), head(config))


def embed(config: DecoderConfig, *, dtype: Any = jnp.float32) -> Stage:
    """The stage "embed"; for gpt2 a session counts each row's tokens.

    Example:
      >>> embed(DecoderConfig()).start is None
      True
    """
    stage = from_linen(Embed(config, dtype), "embed")
    if config.family != "gpt2":
        return stage

    def start(params: Tree, spec: Tree) -> Tree:
        del params
        rows = spec["mask"].shape[0]
        return {"cache": {"count": jnp.zeros(rows, jnp.int32)}}

    return dataclasses.replace(stage, start=start)


def attention(config: DecoderConfig, layer: int, *, dtype: Any = jnp.float32) -> Stage:
    """The stage "layer_l/attention"; a session holds its keys and values.

    Example:
      >>> stage = attention(DecoderConfig(), 3)
      >>> spec = {"mask": jax.ShapeDtypeStruct((2, 16), jnp.bool_)}
      >>> stage.start({}, spec)["cache"]["key"].shape
      (2, 16, 3, 64)
    """

    def start(params: Tree, spec: Tree) -> Tree:
        del params
        rows, room = spec["mask"].shape
        shape = (rows, room, config.kv_heads, config.head_width)
        return {
            "cache": {
                "key": jnp.zeros(shape, dtype),
                "value": jnp.zeros(shape, dtype),
                "mask": jnp.zeros((rows, room), jnp.bool_),
                "place": jnp.int32(0),
            }
        }

    stage = from_linen(Attention(config, dtype), f"layer_{layer}/attention")
    return dataclasses.replace(stage, start=start)


def head(config: DecoderConfig) -> Stage:
    """The stage "head": {"h": (B, T, D), "mask"} -> logits (B, T, V), float32.

    A tied one reads the embedding's table and has no parameters; else it has
    `out/kernel` (D, V).

    Example:
      >>> head(DecoderConfig()).reads
      ('embed',)
    """
    if not config.tied:
        return from_linen(_Head(config), "head")

    def apply(params, state, x, *, key, train, tied):
        del params, key, train
        table = materialize(tied["embed"]["word"]["embedding"]).astype(jnp.float32)
        h = x["h"].astype(jnp.float32)
        return jnp.einsum("btd,vd->btv", h, table), state, {}

    return Stage("head", lambda key, spec: ({}, {}), apply, reads=("embed",))


class _FinalNorm(nn.Module):
    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Tree) -> Tree:
        return {**x, "h": norm(self.config, x["h"].dtype)(x["h"])}


class _Head(nn.Module):
    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Tree) -> jax.Array:
        init = nn.initializers.normal(self.config.init_std)
        out = Dense(self.config.vocab, False, kernel_init=init, name="out")
        return out(x["h"].astype(jnp.float32))
