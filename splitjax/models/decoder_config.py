"""What is fixed of a decoder of the GPT-2 or the Llama form, and its config.json."""

import dataclasses
from typing import Any

from splitjax.core.tree import nearest
from splitjax.models.config_fields import check_fused, check_only, family_in

FAMILIES = ("gpt2", "llama")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and constants of a decoder; the defaults are SmolLM2-135M's.

    Attributes:
      family: "gpt2" (learned positions, layer norm, biases, gelu) or "llama" (rotary
        positions, root-mean-square norm, no biases, a gated silu).
      vocab: V, the number of token ids.
      width: D.
      heads: H, of the queries; it divides the width.
      kv_heads: heads of keys and values; each serves H / kv_heads heads of queries.
      layers: L.
      ffn: F, the width inside the feed-forward block.
      positions: tokens that fit; for gpt2 the rows of its table.
      eps: of the norms.
      rope_base: of the rotary positions.
      interleaved: whether a rotated pair is (2i, 2i + 1), as GGUF archives store
        queries and keys, and not (i, i + width / 2), as Hugging Face's folders do.
      tied: whether the head reads the embedding's table. A tied model cannot be cut
        between the two: load it with `tied=False`, and the head has a copy.
      dropout: after the embeddings, attention and feed-forward block.
      attention_dropout: of the attention's probabilities.
      init_std: of fresh kernels.
      fused: how layers compute, as `BertConfig.fused`; gpt2 only, since llama has no
        layer norm and no biases. The parameters and the function are the same.

    Raises:
      ValueError: when the numbers do not fit each other.

    Example:
      >>> DecoderConfig().head_width
      64
    """

    family: str = "llama"
    vocab: int = 49152
    width: int = 576
    heads: int = 9
    kv_heads: int = 3
    layers: int = 30
    ffn: int = 1536
    positions: int = 8192
    eps: float = 1e-5
    rope_base: float = 1e5
    interleaved: bool = False
    tied: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02
    fused: str = ""

    def __post_init__(self):
        check_fused(self.fused)
        if self.family not in FAMILIES:
            raise ValueError(
                f"family {self.family!r}: {nearest(self.family, FAMILIES)}"
            )
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"a width of {self.width}, {self.heads} heads and {self.kv_heads} "
                "heads of keys: each must divide the one before it"
            )
        if self.family == "llama" and self.head_width % 2:
            raise ValueError(
                f"a head is {self.head_width} wide: rotary positions turn pairs"
            )
        if self.family == "gpt2" and self.kv_heads != self.heads:
            raise ValueError(
                f"gpt2 has as many heads of keys as of queries: {self.kv_heads} and "
                f"{self.heads}"
            )
        if self.fused and self.family != "gpt2":
            raise ValueError(
                f"fused={self.fused!r} of the family {self.family!r}: its norm and its "
                "layers without biases have no kernels here, gpt2's have; take fused=''"
            )

    @property
    def head_width(self) -> int:
        """The width of one head."""
        return self.width // self.heads


def from_json(fields: dict[str, Any]) -> DecoderConfig:
    """Reads the fields of a Hugging Face config.json.

    Args:
      fields: the parsed file; its `model_type` is "gpt2" or "llama".

    Raises:
      ValueError: for a model, or an option of it, that is not built here.

    Example:
      >>> fields = {"model_type": "gpt2", "vocab_size": 9, "n_embd": 4, "n_head": 2,
      ...     "n_layer": 1, "n_positions": 16}
      >>> from_json(fields).ffn
      16
    """
    family = family_in(fields, FAMILIES)
    check_only(fields, ONLY[family])
    return (_gpt2 if family == "gpt2" else _llama)(fields)


# Options of the originals that change what is computed, at the value that is built.
ONLY: dict[str, dict[str, Any]] = {
    "gpt2": {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    "llama": {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
    },
}


def _gpt2(fields: dict[str, Any]) -> DecoderConfig:
    if fields.get("resid_pdrop", 0.1) != fields.get("embd_pdrop", 0.1):
        raise ValueError(
            f"config.json has resid_pdrop {fields.get('resid_pdrop', 0.1)} and "
            f"embd_pdrop {fields.get('embd_pdrop', 0.1)}; only equal ones are built"
        )
    return DecoderConfig(
        family="gpt2",
        vocab=fields["vocab_size"],
        width=fields["n_embd"],
        heads=fields["n_head"],
        kv_heads=fields["n_head"],
        layers=fields["n_layer"],
        ffn=fields.get("n_inner") or 4 * fields["n_embd"],
        positions=fields["n_positions"],
        eps=fields.get("layer_norm_epsilon", 1e-5),
        tied=fields.get("tie_word_embeddings", True),
        dropout=fields.get("resid_pdrop", 0.1),
        attention_dropout=fields.get("attn_pdrop", 0.1),
        init_std=fields.get("initializer_range", 0.02),
    )


def _llama(fields: dict[str, Any]) -> DecoderConfig:
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    if fields.get("head_dim") not in (None, width // heads):
        raise ValueError(
            f"config.json has head_dim {fields['head_dim']}; only {width // heads}, "
            "the width by the heads, is built here"
        )
    # Newer versions of the library put the base into a group of its own.
    rope = fields.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(
            f"config.json has rope_type {rope['rope_type']!r}; only 'default' is built "
            "here"
        )
    base = fields.get("rope_theta", rope.get("rope_theta", 1e4))
    return DecoderConfig(
        family="llama",
        vocab=fields["vocab_size"],
        width=width,
        heads=heads,
        kv_heads=fields.get("num_key_value_heads") or heads,
        layers=fields["num_hidden_layers"],
        ffn=fields["intermediate_size"],
        positions=fields["max_position_embeddings"],
        eps=fields.get("rms_norm_eps", 1e-6),
        rope_base=base,
        tied=fields.get("tie_word_embeddings", False),
        attention_dropout=fields.get("attention_dropout", 0.0),
        init_std=fields.get("initializer_range", 0.02),
    )


def to_json(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a Hugging Face config.json: undoes `from_json`.

    Example:
      >>> from_json(to_json(DecoderConfig(layers=3))).layers
      3
    """
    c = config
    shared = {
        "model_type": c.family,
        "vocab_size": c.vocab,
        "initializer_range": c.init_std,
        "tie_word_embeddings": c.tied,
    }
    if c.family == "gpt2":
        return shared | {
            "architectures": ["GPT2LMHeadModel"],
            "n_embd": c.width,
            "n_head": c.heads,
            "n_layer": c.layers,
            "n_inner": c.ffn,
            "n_positions": c.positions,
            "layer_norm_epsilon": c.eps,
            "activation_function": "gelu_new",
            "embd_pdrop": c.dropout,
            "resid_pdrop": c.dropout,
            "attn_pdrop": c.attention_dropout,
        }
    return shared | {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": c.width,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "num_hidden_layers": c.layers,
        "intermediate_size": c.ffn,
        "max_position_embeddings": c.positions,
        "rms_norm_eps": c.eps,
        "rope_theta": c.rope_base,
        "hidden_act": "silu",
        "attention_dropout": c.attention_dropout,
    }
