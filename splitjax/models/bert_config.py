"""What is fixed of a BERT-family model, and Hugging Face's config.json of it."""

import dataclasses
from typing import Any

from splitjax.core.tree import nearest
from splitjax.models.config_fields import check_fused, check_only, family_in

FAMILIES = ("bert", "mpnet")
ONLY = {"hidden_act": "gelu", "position_embedding_type": "absolute"}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes and constants of a model of the BERT family.

    Attributes:
      family: "bert", or "mpnet" (no token types, relative position bias).
      vocab: V, the number of token ids.
      width: D.
      heads: H; it divides the width.
      layers: L.
      ffn: F, the width inside the feed-forward block.
      positions: rows of the position table.
      first_position: the row of the first token; mpnet leaves two rows to padding.
      types: token types; 0 for mpnet.
      buckets: of the relative position bias, 0 for none.
      eps: of the layer norms.
      dropout: after the embeddings, attention and feed-forward block.
      attention_dropout: of the attention's probabilities.
      init_std: of fresh kernels.
      skipless: layers, counted from 0, whose feed-forward block has no skip connection:
        what merging a squeezed layer leaves behind.
      fused: how layers compute: "" by Flax and JAX, else by `splitjax.kernels`, as
        "xla" programs or as "auto" says (see `kernels.kernel.Kernel`; not for a mesh).
        The parameters are the same, and so is the function; what dropout drops is
        another draw.

    Raises:
      ValueError: when the numbers do not fit each other.

    Example:
      >>> BertConfig(vocab=100, width=8, heads=2, layers=1, ffn=16).longest
      512
    """

    family: str = "bert"
    vocab: int = 30522
    width: int = 384
    heads: int = 12
    layers: int = 6
    ffn: int = 1536
    positions: int = 512
    first_position: int = 0
    types: int = 2
    buckets: int = 0
    eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init_std: float = 0.02
    skipless: tuple[int, ...] = ()
    fused: str = ""

    def __post_init__(self):
        check_fused(self.fused)
        if self.family not in FAMILIES:
            raise ValueError(
                f"family {self.family!r}: {nearest(self.family, FAMILIES)}"
            )
        if self.width % self.heads:
            raise ValueError(
                f"a width of {self.width} is no multiple of {self.heads} heads"
            )

    @property
    def longest(self) -> int:
        """How many tokens fit into the position table."""
        return self.positions - self.first_position


def from_json(fields: dict[str, Any]) -> BertConfig:
    """Reads the fields of a Hugging Face config.json.

    Args:
      fields: the parsed file; its `model_type` is "bert" or "mpnet".

    Raises:
      ValueError: for a model, an activation or a kind of position that is not built
        here.

    Example:
      >>> from_json({"model_type": "mpnet", "vocab_size": 9, "hidden_size": 4,
      ...     "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8,
      ...     "max_position_embeddings": 16}).first_position
      2
    """
    family = family_in(fields, FAMILIES)
    check_only(fields, ONLY)
    mpnet = family == "mpnet"
    return BertConfig(
        family=family,
        vocab=fields["vocab_size"],
        width=fields["hidden_size"],
        heads=fields["num_attention_heads"],
        layers=fields["num_hidden_layers"],
        ffn=fields["intermediate_size"],
        positions=fields["max_position_embeddings"],
        first_position=fields.get("pad_token_id", 1) + 1 if mpnet else 0,
        types=0 if mpnet else fields.get("type_vocab_size", 2),
        buckets=fields.get("relative_attention_num_buckets", 32) if mpnet else 0,
        eps=fields.get("layer_norm_eps", 1e-12),
        dropout=fields.get("hidden_dropout_prob", 0.1),
        attention_dropout=fields.get("attention_probs_dropout_prob", 0.1),
        init_std=fields.get("initializer_range", 0.02),
        skipless=tuple(fields.get("splitjax_skipless", ())),
    )


def to_json(config: BertConfig) -> dict[str, Any]:
    """The fields of a Hugging Face config.json: undoes `from_json`.

    Example:
      >>> from_json(to_json(BertConfig(layers=3))).layers
      3
    """
    fields: dict[str, Any] = {
        "model_type": config.family,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "intermediate_size": config.ffn,
        "max_position_embeddings": config.positions,
        "layer_norm_eps": config.eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "initializer_range": config.init_std,
        "hidden_act": "gelu",
    }
    if config.skipless:
        fields["splitjax_skipless"] = list(config.skipless)
    if config.family == "mpnet":
        fields["relative_attention_num_buckets"] = config.buckets
        fields["pad_token_id"] = config.first_position - 1
    else:
        fields["type_vocab_size"] = config.types
        fields["pad_token_id"] = 0
    return fields
