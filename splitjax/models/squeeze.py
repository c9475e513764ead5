"""SFT's cut: a feed-forward block parted into `squeeze` (edge) and `expand` (cloud)."""

import dataclasses
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.adapters.linen import from_linen
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree
from splitjax.models.bert_block import Norm, dense, gelu
from splitjax.models.bert_config import BertConfig


@dataclasses.dataclass(frozen=True)
class Squeeze:
    """How narrow the cut inside of one feed-forward block is.

    Attributes:
      rank: R, the width of what crosses.
      skip: the block's skip connection. None: removed, as in the paper; "keep": its
        input crosses whole beside the code; a number: that many dimensions of it do.
      mode: "svd": the code is the middle of W = V S U, the first matrix of the block.
        "pca": the code is the block's input in R dimensions, from which the cloud
        rebuilds the input and runs the whole block on it, skip connection included.

    Raises:
      ValueError: for a mode or a skip that is none of these.

    Example:
      >>> Squeeze(8).skip is None
      True
    """

    rank: int
    skip: str | int | None = None
    mode: str = "svd"

    def __post_init__(self):
        if self.mode not in ("svd", "pca"):
            raise ValueError(f"mode {self.mode!r}: it is 'svd' or 'pca'")
        if self.mode == "pca" and self.skip is not None:
            raise ValueError("mode 'pca' rebuilds the skip from its code: skip is None")
        if not (_is_count(self.skip) or self.skip in (None, "keep")):
            raise ValueError(f"skip {self.skip!r}: it is None, 'keep' or a number")


class SqueezePart(nn.Module):
    """The edge's part: {"h": a (B, T, D), "mask"} -> the code {"h": (B, T, R), "mask"}.

    With a skip the output has also "skip": (B, T, r') or, for "keep", a itself.

    Parameters, mode "svd": `v/kernel` (D, R), `s/kernel` (R, R); with a numeric skip r'
    also `skip/kernel` (D, r') and `skip/mean` (D,). Mode "pca": `code/kernel` (D, R)
    and `code/mean` (D,).
    """

    config: BertConfig
    squeeze: Squeeze
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree) -> Tree:
        """Projects the input of the block."""
        q, a = self.squeeze, x["h"]

        def project(features, name, **kwargs):
            return _Project(self.config, features, self.dtype, name=name, **kwargs)

        if q.mode == "pca":
            return {**x, "h": project(q.rank, "code", centered=True)(a)}
        h = project(q.rank, "s")(project(q.rank, "v")(a))
        if q.skip is None:
            return {**x, "h": h}
        skip = a if q.skip == "keep" else project(q.skip, "skip", centered=True)(a)
        return {**x, "h": h, "skip": skip}


class ExpandPart(nn.Module):
    """The cloud's part: the code -> {"h": y (B, T, D), "mask"}.

    y = LN(wo(gelu(u(h))) [+ skip]) in mode "svd"; in mode "pca" a' = decode(h) and
    y = LN(a' + wo(gelu(wi(a')))).

    Parameters, both modes: `wo/kernel` (F, D), `wo/bias`, `norm/scale`, `norm/bias`.
    Mode "svd": `u/kernel` (R, F), `u/bias` (F,), the bias of the dense wi; with a
    numeric skip r' also `skip_out/kernel` (r', D), `skip_out/bias` (D,), which starts
    as the mean. Mode "pca": `decode/kernel` (R, D), `decode/bias` (D,), which starts as
    the mean, and the dense `wi/kernel` (D, F), `wi/bias`.
    """

    config: BertConfig
    squeeze: Squeeze
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Runs the rest of the block."""
        c, q = self.config, self.squeeze
        x = dict(x)
        h, skip = x["h"], x.pop("skip", None)

        def layer(features, name):
            return dense(c, features, name, self.dtype)

        if q.mode == "pca":
            skip = layer(c.width, "decode")(h)
            y = layer(c.ffn, "wi")(skip)
        else:
            y = layer(c.ffn, "u")(h)
            if _is_count(q.skip):
                skip = layer(c.width, "skip_out")(skip)
        y = layer(c.width, "wo")(gelu(y))
        y = nn.Dropout(c.dropout)(y, deterministic=not train)
        if skip is not None:
            y = y + skip
        return {**x, "h": Norm(c.eps, self.dtype, name="norm")(y)}


def squeezed(
    ffn: Stage,
    config: BertConfig,
    squeeze: Squeeze,
    *,
    dtype: Any = jnp.float32,
) -> tuple[Stage, Stage]:
    """The two stages "layer_l/squeeze" and "layer_l/expand" for "layer_l/ffn".

    Their fresh parameters are noise: fit them to the dense ones with
    `factors.low_rank.squeeze_params`.

    Args:
      ffn: the stage that is replaced; it has the tag "post_ln_ffn".
      config: the model's.
      squeeze: the cut's.
      dtype: what is computed in, and the dtype of what crosses.

    Raises:
      ValueError: for a block of another kind, a rank outside of 1..min(D, F), or a skip
        outside of 1..D.

    Example:
      >>> from splitjax.models.bert import ffn
      >>> config = BertConfig(width=8, heads=2, ffn=16)
      >>> [s.name for s in squeezed(ffn(config, 3), config, Squeeze(4))]
      ['layer_3/squeeze', 'layer_3/expand']

    Reference:
      SFT, "Split fine-tuning" of language models, 2022 (arXiv:2211.16703), after the
      authors' published code.

    Differs: a `skip` and mode "pca" are additions; without them it is the paper's.
    """
    if "post_ln_ffn" not in ffn.tags:
        raise ValueError(
            f"stage {ffn.name!r} cannot be squeezed: it lacks the tag 'post_ln_ffn'. "
            "In a pre-LN block the skip is the whole stream, and a gated block has two "
            "first matrices: cut such a model between its layers."
        )
    most = config.width if squeeze.mode == "pca" else min(config.width, config.ffn)
    if not (_is_count(squeeze.rank) and 1 <= squeeze.rank <= most):
        raise ValueError(f"rank {squeeze.rank!r} of {ffn.name!r}: it is 1 to {most}")
    if _is_count(squeeze.skip) and not 1 <= squeeze.skip <= config.width:
        raise ValueError(
            f"skip {squeeze.skip} of {ffn.name!r}: it is 1 to {config.width}"
        )
    layer = ffn.name.rpartition("/")[0]
    first = SqueezePart(config, squeeze, dtype)
    rest = ExpandPart(config, squeeze, dtype)
    return (
        from_linen(first, f"{layer}/squeeze", tags={"squeeze"}),
        from_linen(rest, f"{layer}/expand", tags={"expand"}),
    )


class _Project(nn.Module):
    """(a [- mean]) @ kernel."""

    config: BertConfig
    features: int
    dtype: Any
    centered: bool = False

    @nn.compact
    def __call__(self, a: jax.Array) -> jax.Array:
        if self.centered:
            zeros = nn.initializers.zeros
            mean = self.param("mean", zeros, a.shape[-1:], jnp.float32)
            a = a - mean.astype(a.dtype)[None, None]
        init = nn.initializers.normal(self.config.init_std)
        shape = (a.shape[-1], self.features)
        kernel = self.param("kernel", init, shape, jnp.float32)
        return a.astype(self.dtype) @ kernel.astype(self.dtype)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
