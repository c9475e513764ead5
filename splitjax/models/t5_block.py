"""The pieces of a T5: embeddings, attention of three kinds, feed-forward block."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.core.tree import Tree
from splitjax.models.decoder_block import RmsNorm
from splitjax.models.dense import Dense
from splitjax.models.lookup import Lookup
from splitjax.models.relative_bias import RelativeBias
from splitjax.models.t5_config import T5Config
from splitjax.models.token_input import PAIR, check_tokens

PAIRS = (PAIR, ("decoder_ids", "decoder_mask"))


def dense(config: T5Config, features: int, name: str, dtype: Any, *, fan: int) -> Dense:
    """A dense layer without bias, whose fresh kernels have the variance 1 / fan.

    Example:
      >>> dense(T5Config(), 4, "wi", jnp.float32, fan=9).use_bias
      False
    """
    init = nn.initializers.normal(config.init_factor * fan**-0.5)
    return Dense(features, False, dtype=dtype, kernel_init=init, name=name)


class Embed(nn.Module):
    """The encoder's: the input -> {"h": (B, T, D), "mask", "decoder_ids", ...}.

    Parameters: `word/embedding` (V, D). An id outside of the vocabulary gives NaN.
    """

    config: T5Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Looks the encoder's tokens up; the decoder's go along."""
        c = self.config
        check_tokens(x, "T5", pairs=PAIRS)
        if len(x["ids"]) != len(x["decoder_ids"]):
            raise ValueError(
                f"{len(x['ids'])} texts for the encoder and {len(x['decoder_ids'])} "
                "for the decoder: give pairs"
            )
        h = Lookup(c.vocab, c.width, c.init_factor, name="word")(x["ids"])
        h = nn.Dropout(c.dropout)(h, deterministic=not train).astype(self.dtype)
        rest = {name: x[name] for name in ("mask", "decoder_ids", "decoder_mask")}
        return {"h": h, **rest}


class Attention(nn.Module):
    """h -> h + out(softmax(q k + bias) v) of the norm of h; q is not scaled.

    Parameters: `norm/scale`; `query`, `key`, `value` (D, H W), `out` (H W, D): each
    `kernel`; but for "cross" `relative_bias/embedding` (buckets, H), see its module.

    Attributes:
      config: sizes and constants.
      kind: "encoder": all tokens see all; "decoder": those before them; "cross": the
        decoder's see x["side"] (B, S, D), the encoder's output, by its mask.
      dtype: what is computed in.
    """

    config: T5Config
    kind: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Maps {"h": (B, T, D), "mask": (B, T), ...} to the same."""
        c, h = self.config, x["h"]
        b, t, _ = h.shape
        y = RmsNorm(c.eps, self.dtype, name="norm")(h)
        cross = self.kind == "cross"
        other, mask = (x["side"], x["side_mask"]) if cross else (y, x["mask"])

        def split(name, of, fan):
            made = dense(c, c.heads * c.head_width, name, self.dtype, fan=fan)(of)
            return made.reshape(*of.shape[:2], c.heads, c.head_width)

        q = split("query", y, c.width * c.head_width)
        k, v = split("key", other, c.width), split("value", other, c.width)
        scores = jnp.einsum("bthw,bshw->bhts", q, k).astype(jnp.float32)
        seen = mask[:, None, :]
        if not cross:
            causal = self.kind == "decoder"
            bias = RelativeBias(
                c.buckets, c.heads, c.farthest, causal, name="relative_bias"
            )
            scores = scores + bias(t)[None]
            if causal:
                seen = seen & jnp.tril(jnp.ones((t, t), bool))[None]
        low = jnp.finfo(jnp.float32).min
        scores = jnp.where(seen[:, None], scores, low)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        weights = nn.Dropout(c.dropout)(weights, deterministic=not train)
        y = jnp.einsum("bhts,bshw->bthw", weights, v).reshape(b, t, -1)
        y = dense(c, c.width, "out", self.dtype, fan=c.heads * c.head_width)(y)
        return {**x, "h": h + nn.Dropout(c.dropout)(y, deterministic=not train)}


class Ffn(nn.Module):
    """h -> h + wo(relu(wi(y))), or wo(gelu(gate(y)) * wi(y)), y the norm of h.

    Parameters: `norm/scale`; `wi` (D, F), `wo` (F, D), maybe `gate` (D, F): each
    `kernel`.
    """

    config: T5Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Maps {"h": (B, T, D), ...} to the same."""
        c = self.config
        y = RmsNorm(c.eps, self.dtype, name="norm")(x["h"])
        inner = dense(c, c.ffn, "wi", self.dtype, fan=c.width)(y)
        if c.gated:
            gate = dense(c, c.ffn, "gate", self.dtype, fan=c.width)(y)
            inner = jax.nn.gelu(gate, approximate=True) * inner
        else:
            inner = jax.nn.relu(inner)
        inner = nn.Dropout(c.dropout)(inner, deterministic=not train)
        y = dense(c, c.width, "wo", self.dtype, fan=c.ffn)(inner)
        y = nn.Dropout(c.dropout)(y, deterministic=not train)
        return {**x, "h": x["h"] + y}


class FinalNorm(nn.Module):
    """The norm after a stack, with dropout. Parameters: `norm/scale`."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Maps {"h": (B, T, D), ...} to the same."""
        c, h = self.config, x["h"]
        h = RmsNorm(c.eps, h.dtype, name="norm")(h)
        return {**x, "h": nn.Dropout(c.dropout)(h, deterministic=not train)}
