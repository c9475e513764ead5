"""The BERT family (BERT, MiniLM, MPNet) as ordered stages."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from splitjax.adapters.linen import from_linen
from splitjax.core.stage import Stage
from splitjax.models.bert_block import Attention, Embed, Ffn
from splitjax.models.bert_config import BertConfig
from splitjax.models.squeeze import Squeeze, squeezed

# Parameters that are not trained: keep an optimizer's weight decay off them.
FROZEN = r".*/relative_bias/embedding"


def embed(config: BertConfig, *, dtype: Any = jnp.float32) -> Stage:
    """The stage "embed": {"ids", "mask", maybe "types"} -> {"h", "mask"}.

    Example:
      >>> embed(BertConfig()).name
      'embed'
    """
    return from_linen(Embed(config, dtype), "embed")


def attention(config: BertConfig, layer: int, *, dtype: Any = jnp.float32) -> Stage:
    """The stage "layer_l/attention", with its skip and norm.

    Example:
      >>> attention(BertConfig(), 2).name
      'layer_2/attention'
    """
    return from_linen(Attention(config, dtype), f"layer_{layer}/attention")


def ffn(config: BertConfig, layer: int, *, dtype: Any = jnp.float32) -> Stage:
    """The stage "layer_l/ffn", with its skip and norm; its tag is "post_ln_ffn".

    Example:
      >>> ffn(BertConfig(), 2).name
      'layer_2/ffn'
    """
    module = Ffn(config, dtype, skip=layer not in config.skipless)
    return from_linen(module, f"layer_{layer}/ffn", tags={"post_ln_ffn"})


def bert(
    config: BertConfig,
    head: Sequence[Stage] = (),
    *,
    squeeze: Mapping[int, Squeeze] | None = None,
    dtype: Any = jnp.float32,
) -> tuple[Stage, ...]:
    """A model of the BERT family.

    Its stages are "embed", then "layer_0/attention", "layer_0/ffn", and so on, then the
    head's. The input is {"ids": (B, T) int, "mask": (B, T) bool, maybe "types"}, and
    between stages goes {"h": (B, T, D), "mask"}. Dropout stands where the original has
    it, each stage drawing from its own key.

    Args:
      config: sizes and constants.
      head: the stages of a head, as `models.heads` makes them.
      squeeze: which feed-forward blocks are parted for a narrow cut, by layer, counted
        from 0; see `models.squeeze`.
      dtype: what is computed in; parameters and heads are float32.

    Raises:
      ValueError: for a layer that the model does not have, and see
        `models.squeeze.squeezed`.

    Example:
      >>> config = BertConfig(width=8, heads=2, layers=2, ffn=16)
      >>> [stage.name for stage in bert(config, squeeze={1: Squeeze(4)})][-2:]
      ['layer_1/squeeze', 'layer_1/expand']

    Reference:
      Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language
      Understanding, 2018 (arXiv:1810.04805); Song et al., MPNet: Masked and Permuted
      Pre-training for Language Understanding, 2020 (arXiv:2004.09297).

    Differs: MPNet's table of relative positions is not trained.
    """
    squeeze = dict(squeeze or {})
    for layer in squeeze:
        if layer not in range(config.layers):
            raise ValueError(
                f"squeeze names layer {layer!r}; the layers are 0 to "
                f"{config.layers - 1}. (The SFT paper counts from 1: its split l is "
                "layer l - 1 here.)"
            )
    stages = [embed(config, dtype=dtype)]
    for layer in range(config.layers):
        stages.append(attention(config, layer, dtype=dtype))
        block = ffn(config, layer, dtype=dtype)
        if layer in squeeze:
            stages += squeezed(block, config, squeeze[layer], dtype=dtype)
        else:
            stages.append(block)
    return (*stages, *head)
