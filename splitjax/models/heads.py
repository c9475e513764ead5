"""Heads for the BERT family: the stages "pool" and "head"; they compute in float32."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.adapters.linen import from_linen
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree, nearest
from splitjax.models.dense import Dense

Head = tuple[Stage, Stage]
KERNELS = nn.initializers.normal(0.02)


def embedding(*, normalize: bool = True) -> Head:
    """A sentence embedding (B, D): the mean over real tokens, of length 1.

    It has no parameters. A row without tokens gives zeros.

    Args:
      normalize: whether to divide by the length.

    Example:
      >>> [stage.name for stage in embedding()]
      ['pool', 'head']
    """
    return _pool("mean"), _pure("head", unit if normalize else lambda x: x)


def pair_cosine() -> Head:
    """The cosine (B,) of two sentences embedded by one model.

    The batch has 2B rows: first those of one tower, then those of the other.

    Example:
      >>> [stage.name for stage in pair_cosine()]
      ['pool', 'head']
    """

    def cosine(x):
        u, v = _towers(unit(x))
        return (u * v).sum(-1)

    return _pool("mean"), _pure("head", cosine)


def pairs(classes: int) -> Head:
    """Logits (B, classes) of two sentences: a linear layer on [u, v, |u - v|].

    The batch has 2B rows: first those of one tower, then those of the other.
    Parameters: `classifier/kernel` (3D, classes), `classifier/bias`.

    Example:
      >>> [stage.name for stage in pairs(3)]
      ['pool', 'head']

    Reference:
      Reimers and Gurevych, Sentence-BERT, 2019 (arXiv:1908.10084), classification
      objective.

    Differs: nothing.
    """
    return _pool("mean"), from_linen(_Classifier(classes, pairs=True), "head")


def classification(classes: int, *, pool: str = "cls", dropout: float = 0.1) -> Head:
    """Logits (B, classes) of one text.

    Parameters: for "pooler" `pool/pooler/kernel` (D, D) and `bias`, which pretrained
    folders have; `head/classifier/kernel` (D, classes) and `bias`.

    Args:
      classes: how many.
      pool: "cls": the first token's vector; "pooler": tanh of a dense layer on it, as
        BERT's own classifiers do; "mean": the mean over real tokens.
      dropout: before the linear layer.

    Raises:
      ValueError: for another pool.

    Example:
      >>> [stage.name for stage in classification(2)]
      ['pool', 'head']
    """
    return _pool(pool), from_linen(_Classifier(classes, dropout), "head")


def regression(*, pool: str = "cls", dropout: float = 0.1) -> Head:
    """One number (B,) of one text; the parameters are those of one class.

    Args:
      pool: as in `classification`.
      dropout: before the linear layer.

    Example:
      >>> [stage.name for stage in regression(pool="mean")]
      ['pool', 'head']
    """
    return _pool(pool), from_linen(_Classifier(1, dropout, squeeze=True), "head")


def unit(x: jax.Array) -> jax.Array:
    """Rows of length 1; a row of zeros stays so, and has a gradient.

    Example:
      >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
      [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))


def masked_mean(h: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of h (B, T, D) over the tokens of the mask (B, T), float32.

    Example:
      >>> mask = jnp.array([[True, False]])
      >>> masked_mean(jnp.array([[[2.0], [9.0]]]), mask).tolist()
      [[2.0]]
    """
    h = jnp.where(mask[..., None], h.astype(jnp.float32), 0.0)
    count = jnp.maximum(mask.sum(1, keepdims=True), 1)
    return h.sum(1) / count.astype(jnp.float32)


class _Pool(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x: Tree) -> jax.Array:
        if self.kind == "mean":
            return masked_mean(x["h"], x["mask"])
        first = x["h"][:, 0].astype(jnp.float32)
        if self.kind == "cls":
            return first
        layer = Dense(first.shape[-1], kernel_init=KERNELS, name="pooler")
        return jnp.tanh(layer(first))


class _Classifier(nn.Module):
    classes: int
    dropout: float = 0.0
    pairs: bool = False
    squeeze: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.pairs:
            u, v = _towers(x)
            x = jnp.concatenate([u, v, jnp.abs(u - v)], axis=-1)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        y = Dense(self.classes, kernel_init=KERNELS, name="classifier")(x)
        return y[:, 0] if self.squeeze else y


def _pool(kind: str) -> Stage:
    kinds = ("cls", "pooler", "mean")
    if kind not in kinds:
        raise ValueError(f"pool {kind!r}: {nearest(kind, kinds)}")
    return from_linen(_Pool(kind), "pool")


def _pure(name: str, function) -> Stage:
    def apply(params, state, x, *, key, train):
        return function(x), state, {}

    return Stage(name, lambda key, spec: ({}, {}), apply)


def _towers(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    if len(x) % 2:
        raise ValueError(
            f"a pair head reads an even number of rows, one tower after the other: "
            f"{len(x)}"
        )
    half = len(x) // 2
    return x[:half], x[half:]
