"""Vision transformers as ordered stages."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.adapters.linen import from_linen
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree
from splitjax.models.bert_block import Norm, gelu
from splitjax.models.convolution import opened
from splitjax.models.dense import Dense
from splitjax.models.vit_config import VitConfig


def vit(config: VitConfig, *, dtype: Any = jnp.float32) -> tuple[Stage, ...]:
    """A ViT: from pictures to logits of their class.

    Its stages are "embed", then "layer_0/attention", "layer_0/ffn", and so on, then
    "norm" and "head". The input is pictures (B, H, W, C) of float, or {"h": pictures,
    "mask": (B,) bool} as `models.pixels` gives them; between stages goes {"h": (B, T,
    D), "mask": (B, T)}, and the head gives logits (B, classes), float32.

    For other classes than a folder's, drop "head" from the loaded parameters: a fresh
    one is then made.

    Args:
      config: sizes and constants.
      dtype: what is computed in; parameters and the head are float32.

    Example:
      >>> [stage.name for stage in vit(VitConfig(layers=1))]
      ['embed', 'layer_0/attention', 'layer_0/ffn', 'norm', 'head']

    Reference:
      Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for Image
      Recognition at Scale, 2020 (arXiv:2010.11929).

    Differs: nothing.
    """
    stages = [from_linen(Embed(config, dtype), "embed")]
    for layer in range(config.layers):
        stages += [
            from_linen(Attention(config, dtype), f"layer_{layer}/attention"),
            from_linen(Ffn(config, dtype), f"layer_{layer}/ffn"),
        ]
    last = from_linen(_FinalNorm(config), "norm")
    return (*stages, last, from_linen(_Head(config), "head"))


class Embed(nn.Module):
    """Pictures -> {"h": (B, T, D), "mask": (B, T)}: patches, a token before them.

    Parameters: `patch/kernel` (P P C, D), `patch/bias`, `cls` (1, 1, D), `position`
    (1, T, D).
    """

    config: VitConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Cuts pictures into patches, adds their places, drops some."""
        c = self.config
        image, mask = opened(x)
        wanted = (c.size, c.size, c.channels)
        if image.ndim != 4 or image.shape[1:] != wanted:
            raise ValueError(
                f"pictures are float (B, {c.size}, {c.size}, {c.channels}): "
                f"{image.dtype} {image.shape}"
            )
        b, side = len(image), c.size // c.patch
        rows = image.reshape(b, side, c.patch, side, c.patch, c.channels)
        rows = rows.swapaxes(2, 3).reshape(b, side * side, -1)
        h = _dense(c, c.width, "patch", self.dtype)(rows)
        init = nn.initializers.normal(c.init_std)
        first = self.param("cls", init, (1, 1, c.width), jnp.float32)
        places = self.param("position", init, (1, c.tokens, c.width), jnp.float32)
        first = jnp.broadcast_to(first.astype(self.dtype), (b, 1, c.width))
        h = jnp.concatenate([first, h], 1) + places.astype(self.dtype)
        h = nn.Dropout(c.dropout)(h, deterministic=not train)
        mask = jnp.ones(b, bool) if mask is None else mask
        return {"h": h, "mask": jnp.repeat(mask[:, None], c.tokens, 1)}


class Attention(nn.Module):
    """h -> h + out(softmax(q k / sqrt(D / H)) v) of the norm of h.

    Parameters: `norm`; `query`, `key`, `value`, `out`, each `kernel` (D, D) and `bias`.
    """

    config: VitConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Maps {"h": (B, T, D), "mask"} to the same."""
        c, h = self.config, x["h"]
        b, t, _ = h.shape
        y = Norm(c.eps, self.dtype, name="norm")(h)

        def split(name):
            return _dense(c, c.width, name, self.dtype)(y).reshape(b, t, c.heads, -1)

        q, k, v = split("query"), split("key"), split("value")
        q = q * (c.width // c.heads) ** -0.5
        scores = jnp.einsum("bthw,bshw->bhts", q, k).astype(jnp.float32)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        weights = nn.Dropout(c.attention_dropout)(weights, deterministic=not train)
        y = jnp.einsum("bhts,bshw->bthw", weights, v).reshape(b, t, c.width)
        y = _dense(c, c.width, "out", self.dtype)(y)
        return {**x, "h": h + nn.Dropout(c.dropout)(y, deterministic=not train)}


class Ffn(nn.Module):
    """h -> h + wo(gelu(wi(LN(h)))).

    Parameters: `norm`; `wi/kernel` (D, F), `wi/bias`, `wo/kernel` (F, D), `wo/bias`.
    """

    config: VitConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Maps {"h": (B, T, D), "mask"} to the same."""
        c = self.config
        y = Norm(c.eps, self.dtype, name="norm")(x["h"])
        y = gelu(_dense(c, c.ffn, "wi", self.dtype)(y))
        y = _dense(c, c.width, "wo", self.dtype)(y)
        y = nn.Dropout(c.dropout)(y, deterministic=not train)
        return {**x, "h": x["h"] + y}


class _FinalNorm(nn.Module):
    config: VitConfig

    @nn.compact
    def __call__(self, x: Tree) -> Tree:
        return {**x, "h": Norm(self.config.eps, x["h"].dtype, name="norm")(x["h"])}


class _Head(nn.Module):
    config: VitConfig

    @nn.compact
    def __call__(self, x: Tree) -> jax.Array:
        first = x["h"][:, 0].astype(jnp.float32)
        return _dense(self.config, self.config.classes, "classifier", jnp.float32)(
            first
        )


def _dense(config: VitConfig, features: int, name: str, dtype: Any) -> Dense:
    init = nn.initializers.normal(config.init_std)
    return Dense(features, dtype=dtype, kernel_init=init, name=name)
