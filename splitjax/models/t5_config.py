"""What is fixed of a T5 model, and Hugging Face's config.json of it."""

import dataclasses
from typing import Any

from splitjax.models.config_fields import family_in


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes and constants of a T5; the defaults are t5-small's.

    Attributes:
      vocab: V, the number of token ids.
      width: D.
      head_width: the width of a head; all of them need not make up D.
      heads: H.
      layers: of the encoder.
      decoder_layers: of the decoder.
      ffn: F, the width inside the feed-forward block.
      buckets: of the relative position bias.
      farthest: the distance from which on all share a bucket.
      eps: of the norms.
      gated: whether the block is a gated gelu (T5 1.1), and not a relu.
      shared: whether the decoder reads the encoder's table of embeddings. A shared one
        cannot be cut between the two: with `shared=False` the decoder has a copy.
      tied: whether the head reads a table of embeddings, the decoder's own if any.
      scaled: whether the head's input is divided by sqrt(D).
      dropout: after the embeddings, of probabilities, in and after each block.
      init_factor: of fresh parameters.

    Example:
      >>> T5Config(layers=2).decoder_layers
      6
    """

    vocab: int = 32128
    width: int = 512
    head_width: int = 64
    heads: int = 8
    layers: int = 6
    decoder_layers: int = 6
    ffn: int = 2048
    buckets: int = 32
    farthest: int = 128
    eps: float = 1e-6
    gated: bool = False
    shared: bool = True
    tied: bool = True
    scaled: bool = True
    dropout: float = 0.1
    init_factor: float = 1.0

    @property
    def family(self) -> str:
        """The `model_type` of config.json."""
        return "t5"


KINDS = {"relu": False, "gated-gelu": True}


def from_json(fields: dict[str, Any]) -> T5Config:
    """Reads the fields of a Hugging Face config.json.

    Args:
      fields: the parsed file; its `model_type` is "t5".

    Raises:
      ValueError: for another model, or a feed-forward block that is not built here.

    Example:
      >>> from_json({"model_type": "t5", "vocab_size": 9, "d_model": 8, "d_kv": 4,
      ...     "num_heads": 2, "num_layers": 1, "d_ff": 16}).decoder_layers
      1
    """
    family_in(fields, ("t5",))
    kind = fields.get("feed_forward_proj", "relu")
    if kind not in KINDS:
        raise ValueError(
            f"config.json has feed_forward_proj {kind!r}; built here is one of "
            f"{sorted(KINDS)}"
        )
    tied = fields.get("tie_word_embeddings", True)
    return T5Config(
        vocab=fields["vocab_size"],
        width=fields["d_model"],
        head_width=fields["d_kv"],
        heads=fields["num_heads"],
        layers=fields["num_layers"],
        decoder_layers=fields.get("num_decoder_layers") or fields["num_layers"],
        ffn=fields["d_ff"],
        buckets=fields.get("relative_attention_num_buckets", 32),
        farthest=fields.get("relative_attention_max_distance", 128),
        eps=fields.get("layer_norm_epsilon", 1e-6),
        gated=KINDS[kind],
        tied=tied,
        scaled=fields.get("scale_decoder_outputs", tied),
        dropout=fields.get("dropout_rate", 0.1),
        init_factor=fields.get("initializer_factor", 1.0),
    )


def to_json(config: T5Config) -> dict[str, Any]:
    """The fields of a Hugging Face config.json: undoes `from_json`, but for `shared`.

    Example:
      >>> from_json(to_json(T5Config(gated=True))).gated
      True
    """
    c = config
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": c.vocab,
        "d_model": c.width,
        "d_kv": c.head_width,
        "num_heads": c.heads,
        "num_layers": c.layers,
        "num_decoder_layers": c.decoder_layers,
        "d_ff": c.ffn,
        "relative_attention_num_buckets": c.buckets,
        "relative_attention_max_distance": c.farthest,
        "layer_norm_epsilon": c.eps,
        "feed_forward_proj": "gated-gelu" if c.gated else "relu",
        "tie_word_embeddings": c.tied,
        "scale_decoder_outputs": c.scaled,
        "dropout_rate": c.dropout,
        "initializer_factor": c.init_factor,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
