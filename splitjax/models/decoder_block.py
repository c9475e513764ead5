"""The pieces of a decoder: embeddings, attention with a memory, feed-forward block."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.core.tree import Tree
from splitjax.kernels import bias_act_dropout, embed
from splitjax.models.bert_block import Norm
from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.dense import Dense
from splitjax.models.fused import dropped_on
from splitjax.models.lookup import Lookup
from splitjax.models.rope import rotate
from splitjax.models.token_input import check_tokens


class RmsNorm(nn.Module):
    """scale * x / sqrt(mean(x^2) + eps) over the last axis, in float32.

    Example:
      >>> layer = RmsNorm(0.0)
      >>> x = jnp.array([[3.0, 3.0]])
      >>> layer.apply(layer.init(jax.random.key(0), x), x).tolist()
      [[1.0, 1.0]]

    Reference:
      Zhang and Sennrich, Root Mean Square Layer Normalization, 2019 (arXiv:1910.07467),
      equation 4.
    """

    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Norms x (..., D), whose dtype may be any float."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        return (x * jnp.expand_dims(scale, tuple(range(x.ndim - 1)))).astype(self.dtype)


def norm(config: DecoderConfig, dtype: Any, name: str = "norm") -> nn.Module:
    """The norm of the family.

    Example:
      >>> type(norm(DecoderConfig(), jnp.float32)).__name__
      'RmsNorm'
    """
    if config.family == "gpt2":
        return Norm(config.eps, dtype, config.fused, name=name)
    return RmsNorm(config.eps, dtype, name=name)


def dense(
    config: DecoderConfig, features: int, name: str, dtype: Any, *, apart: bool = False
) -> Dense:
    """A dense layer of the family, with a bias for gpt2.

    Example:
      >>> dense(DecoderConfig(), 4, "wi", jnp.float32).use_bias
      False
    """
    init = nn.initializers.normal(config.init_std)
    bias = config.family == "gpt2"
    more: dict[str, Any] = {"kernel_init": init, "apart": apart, "name": name}
    return Dense(features, bias, dtype=dtype, **more)


class Embed(nn.Module):
    """{"ids", "mask"} (B, T) -> {"h": (B, T, D), "mask"}.

    Parameters: `word/embedding` (V, D); for gpt2 `position/embedding`. An id outside of
    the vocabulary gives NaN, and so does a session longer than the positions.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Looks tokens up, adds their places, drops some."""
        c = self.config
        check_tokens(x, "a decoder", longest=c.positions)
        ids, mask = x["ids"], x["mask"]
        word = Lookup(c.vocab, c.width, c.init_std, name="word")
        if c.family != "gpt2":
            h = word(ids)
        else:
            places = jnp.cumsum(mask, 1, dtype=jnp.int32) - 1
            if self.has_variable("cache", "count"):
                count = self.get_variable("cache", "count")
                self.put_variable(
                    "cache", "count", count + mask.sum(1, dtype=jnp.int32)
                )
                places = places + count[:, None]
            places = jnp.maximum(places, 0)
            position = Lookup(c.positions, c.width, c.init_std, name="position")
            if c.fused:
                h = embed(ids, word(), position(), places=places, impl=c.fused)
            else:
                h = word(ids) + position(places)
        h = nn.Dropout(c.dropout)(h, deterministic=not train)
        return {"h": h.astype(self.dtype), "mask": mask}


class Attention(nn.Module):
    """h -> h + out(softmax(q k / sqrt(W)) v) of LN(h), of no later token.

    Positions count real tokens, so padding may be at either end. With a "cache" (see
    `models.session`) it reads keys and values of earlier calls too; more tokens than it
    has room for give NaN.

    Parameters: `norm`; `query` (D, H W), `key`, `value` (D, kv W), `out` (H W, D): each
    `kernel`, and `bias` for gpt2. Cache: `key`, `value` (B, S, kv, W), `mask` (B, S)
    bool, `place` int32.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Maps {"h": (B, T, D), "mask": (B, T)} to the same."""
        c, h, mask = self.config, x["h"], x["mask"]
        b, t, _ = h.shape
        y = norm(c, self.dtype)(h)

        def split(name, heads):
            made = dense(c, heads * c.head_width, name, self.dtype)(y)
            return made.reshape(b, t, heads, c.head_width)

        q, k = split("query", c.heads), split("key", c.kv_heads)
        v = split("value", c.kv_heads)
        if c.family == "llama":
            places = jnp.cumsum(mask, 1, dtype=jnp.int32) - 1
            if self.has_variable("cache", "mask"):
                known = self.get_variable("cache", "mask")
                places = places + known.sum(1, keepdims=True, dtype=jnp.int32)
            q = rotate(q, places, c.rope_base, interleaved=c.interleaved)
            k = rotate(k, places, c.rope_base, interleaved=c.interleaved)
        k, v, real, first = self._remembered(k, v, mask)
        s = k.shape[1]
        # Each head of keys serves a group of heads of queries.
        q = q.reshape(b, t, c.kv_heads, -1, c.head_width) * c.head_width**-0.5
        scores = jnp.einsum("btkgw,bskw->bkgts", q, k).astype(jnp.float32)
        past = (first + jnp.arange(t))[:, None] >= jnp.arange(s)[None]
        seen = real[:, None, :] & past[None]
        low = jnp.finfo(jnp.float32).min
        scores = jnp.where(seen[:, None, None], scores, low)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        weights = nn.Dropout(c.attention_dropout)(weights, deterministic=not train)
        y = jnp.einsum("bkgts,bskw->btkgw", weights, v).reshape(b, t, c.width)
        y = jnp.where(first + t > s, jnp.nan, y)
        y = dense(c, c.width, "out", self.dtype, apart=bool(c.fused))(y)
        if c.fused:
            y = dropped_on(self, y, h, c.dropout, train=train, impl=c.fused)
            return {**x, "h": y}
        y = nn.Dropout(c.dropout)(y, deterministic=not train)
        return {**x, "h": h + y}

    def _remembered(self, k, v, mask):
        """Keys, values and mask of all tokens so far, and the first new one's slot."""
        if not self.has_variable("cache", "mask"):
            return k, v, mask, jnp.int32(0)
        place = self.get_variable("cache", "place")
        out = []
        for name, new in {"key": k, "value": v, "mask": mask}.items():
            old = self.get_variable("cache", name)
            new = new.astype(old.dtype)
            whole = jax.lax.dynamic_update_slice_in_dim(old, new, place, 1)
            self.put_variable("cache", name, whole)
            out.append(whole)
        self.put_variable("cache", "place", place + jnp.int32(k.shape[1]))
        return *out, place


class Ffn(nn.Module):
    """h -> h + wo(gelu(wi(LN(h)))), or for llama h + wo(silu(gate(y)) * wi(y)).

    Parameters: `norm`; `wi` (D, F), `wo` (F, D), for llama `gate` (D, F): each
    `kernel`, and `bias` for gpt2.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Maps {"h": (B, T, D), "mask"} to the same."""
        c = self.config
        y = norm(c, self.dtype)(x["h"])

        def layer(features, name):
            return dense(c, features, name, self.dtype, apart=bool(c.fused))

        if c.fused:
            more = {"activation": "gelu_tanh", "impl": c.fused}
            y = layer(c.width, "wo")(bias_act_dropout(*layer(c.ffn, "wi")(y), **more))
            y = dropped_on(self, y, x["h"], c.dropout, train=train, impl=c.fused)
            return {**x, "h": y}
        y = feed_forward(c, layer, y)
        y = nn.Dropout(c.dropout)(y, deterministic=not train)
        return {**x, "h": x["h"] + y}


def feed_forward(
    config: DecoderConfig, layer: Callable[[int, str], nn.Module], y: jax.Array
) -> jax.Array:
    """wo(gelu(wi(y))), or for llama wo(silu(gate(y)) * wi(y)).

    Args:
      config: the model's.
      layer: `(features, name) -> layer`: dense ones, or those of experts.
      y: (..., D).
    """
    inner = layer(config.ffn, "wi")(y)
    if config.family == "gpt2":
        inner = jax.nn.gelu(inner, approximate=True)
    else:
        inner = jax.nn.silu(layer(config.ffn, "gate")(y)) * inner
    return layer(config.width, "wo")(inner)
