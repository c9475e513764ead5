"""The pieces of a BERT layer: embeddings, attention, feed-forward block."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.core.tree import Tree
from splitjax.kernels import bias_act_dropout, embed, layer_norm
from splitjax.kernels.dropout import ACTIVATIONS
from splitjax.models.bert_config import BertConfig
from splitjax.models.dense import Dense
from splitjax.models.fused import dropped_on
from splitjax.models.lookup import Lookup
from splitjax.models.relative_bias import RelativeBias
from splitjax.models.token_input import check_tokens


def gelu(x: jax.Array) -> jax.Array:
    """x * P(N <= x) for a standard normal N: the exact form, by erf.

    Example:
      >>> round(float(gelu(jnp.float32(1.0))), 6)
      0.841345
    """
    return ACTIVATIONS["gelu"](x, jax.lax.erf)


def dense(
    config: BertConfig, features: int, name: str, dtype: Any, *, apart: bool = False
) -> Dense:
    """A dense layer with the fresh kernels of the family.

    Example:
      >>> dense(BertConfig(), 4, "wi", jnp.float32).features
      4
    """
    init = nn.initializers.normal(config.init_std)
    return Dense(features, dtype=dtype, kernel_init=init, apart=apart, name=name)


class Norm(nn.Module):
    """scale * (x - mean) / sqrt(var + eps) + bias over the last axis, in float32.

    Linen's own layer norm promotes dtypes implicitly, which strict promotion refuses.
    A fused one is `kernels.layer_norm`; see `BertConfig.fused`.

    Example:
      >>> layer = Norm(1e-12)
      >>> x = jnp.array([[1.0, 3.0]], jnp.bfloat16)
      >>> y = layer.apply(layer.init(jax.random.key(0), x), x)
      >>> y.tolist(), y.dtype.name
      ([[-1.0, 1.0]], 'float32')
    """

    eps: float
    dtype: Any = jnp.float32
    fused: str = ""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Norms x (..., D), whose dtype may be any float."""
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale = self.param("scale", ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", zeros, x.shape[-1:], jnp.float32)
        if self.fused:
            more = {"eps": self.eps, "dtype": self.dtype, "impl": self.fused}
            return layer_norm(x, scale, bias, **more)
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        lead = tuple(range(x.ndim - 1))
        x = x * jnp.expand_dims(scale, lead) + jnp.expand_dims(bias, lead)
        return x.astype(self.dtype)


class Embed(nn.Module):
    """{"ids", "mask", maybe "types"} (B, T) -> {"h": (B, T, D), "mask"}.

    Parameters: `word/embedding` (V, D), `position/embedding`, `type/embedding` (bert),
    `norm/scale`, `norm/bias`. An id outside of the vocabulary gives NaN.
    """

    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Sums the embeddings, norms them, drops some."""
        c = self.config
        maybe = ("types",) if c.types else ()
        check_tokens(x, f"a {c.family}", maybe=maybe, longest=c.longest)
        ids, mask = x["ids"], x["mask"]

        def table(rows, name):
            return Lookup(rows, c.width, c.init_std, name=name)

        word, position = table(c.vocab, "word"), table(c.positions, "position")
        if c.family == "mpnet":
            seen = mask.astype(jnp.int32)
            places = jnp.cumsum(seen, 1) * seen + (c.first_position - 1)
        else:
            places = jnp.arange(ids.shape[1])[None]
        if c.fused:
            places = jnp.broadcast_to(places, ids.shape)
            h = embed(ids, word(), position(), places=places, impl=c.fused)
        else:
            h = word(ids) + position(places)
        if c.types:
            h = h + table(c.types, "type")(x.get("types", jnp.zeros_like(ids)))
        h = Norm(c.eps, self.dtype, c.fused, name="norm")(h)
        h = nn.Dropout(c.dropout)(h, deterministic=not train)
        return {"h": h, "mask": mask}


class Attention(nn.Module):
    """h -> LN(h + out(softmax(q k / sqrt(D / H) + bias) v)), keys masked.

    Parameters: `query`, `key`, `value`, `out`, each `kernel` (D, D) and `bias` (D,),
    `norm`, and for mpnet `relative_bias/embedding` (buckets, H). A row that is padding
    throughout attends to all of it alike: finite, of no meaning.
    """

    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Maps {"h": (B, T, D), "mask": (B, T)} to the same."""
        c = self.config
        h, mask = x["h"], x["mask"]
        b, t, _ = h.shape

        def split(name):
            y = dense(c, c.width, name, self.dtype)(h)
            return y.reshape(b, t, c.heads, c.width // c.heads).swapaxes(1, 2)

        q, k, v = split("query"), split("key"), split("value")
        q = q * (c.width // c.heads) ** -0.5
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k).astype(jnp.float32)
        if c.buckets:
            scores = (
                scores + RelativeBias(c.buckets, c.heads, name="relative_bias")(t)[None]
            )
        low = jnp.finfo(jnp.float32).min
        scores = jnp.where(mask[:, None, None, :], scores, low)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        weights = nn.Dropout(c.attention_dropout)(weights, deterministic=not train)
        y = jnp.einsum("bhqk,bhkd->bhqd", weights, v).swapaxes(1, 2)
        out = dense(c, c.width, "out", self.dtype, apart=bool(c.fused))
        y = out(y.reshape(b, t, c.width))
        if c.fused:
            y = dropped_on(self, y, h, c.dropout, train=train, impl=c.fused)
        else:
            y = h + nn.Dropout(c.dropout)(y, deterministic=not train)
        return {**x, "h": Norm(c.eps, self.dtype, c.fused, name="norm")(y)}


class Ffn(nn.Module):
    """h -> LN(h + wo(gelu(wi(h)))), or without "h +".

    Parameters: `wi/kernel` (D, F), `wi/bias`, `wo/kernel` (F, D), `wo/bias`, `norm`.
    """

    config: BertConfig
    dtype: Any = jnp.float32
    skip: bool = True

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Maps {"h": (B, T, D), "mask"} to the same."""
        c, h = self.config, x["h"]
        wi = dense(c, c.ffn, "wi", self.dtype, apart=bool(c.fused))
        wo = dense(c, c.width, "wo", self.dtype, apart=bool(c.fused))
        if c.fused:
            skip = h if self.skip else jnp.zeros_like(h)
            y = wo(bias_act_dropout(*wi(h), activation="gelu", impl=c.fused))
            y = dropped_on(self, y, skip, c.dropout, train=train, impl=c.fused)
        else:
            y = nn.Dropout(c.dropout)(wo(gelu(wi(h))), deterministic=not train)
            y = y + h if self.skip else y
        return {**x, "h": Norm(c.eps, self.dtype, c.fused, name="norm")(y)}
