"""The tensors of a T5 folder."""

from splitjax.models.name_table import Entry
from splitjax.models.t5_config import T5Config

PARTS = {"query": "q", "key": "k", "value": "v", "out": "o"}


def entries(config: T5Config) -> list[Entry]:
    """All leaves of a model.

    A stack's relative bias is one tensor, of its first layer, and a leaf in each layer;
    so is the table of embeddings, where the decoder has a copy.

    Example:
      >>> entries(T5Config(layers=1, decoder_layers=1))[0].tensor
      'shared.weight'
    """
    out = [_word("encoder/embed")]
    for i in range(config.layers):
        place = f"encoder.block.{i}.layer"
        stage = f"encoder/layer_{i}"
        out += _attention(f"{stage}/attention", f"{place}.0", "SelfAttention")
        out.append(_bias("encoder", i))
        out += _ffn(config, f"{stage}/ffn", f"{place}.1")
    out.append(_norm("encoder/norm", "encoder.final_layer_norm"))
    if not config.shared:
        out.append(_word("decoder/embed"))
    for i in range(config.decoder_layers):
        place = f"decoder.block.{i}.layer"
        stage = f"decoder/layer_{i}"
        out += _attention(f"{stage}/attention", f"{place}.0", "SelfAttention")
        out.append(_bias("decoder", i))
        out += _attention(f"{stage}/cross", f"{place}.1", "EncDecAttention")
        out += _ffn(config, f"{stage}/ffn", f"{place}.2")
    out.append(_norm("decoder/norm", "decoder.final_layer_norm"))
    if not config.tied:
        head = ("out", "kernel")
        out.append(Entry("head", head, "lm_head.weight", True, instead="shared.weight"))
    return out


def _word(stage: str) -> Entry:
    return Entry(stage, ("word", "embedding"), "shared.weight")


def _norm(stage: str, tensor: str) -> Entry:
    return Entry(stage, ("norm", "scale"), f"{tensor}.weight")


def _bias(stack: str, layer: int) -> Entry:
    return Entry(
        f"{stack}/layer_{layer}/attention",
        ("relative_bias", "embedding"),
        f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    )


def _attention(stage: str, place: str, kind: str) -> list[Entry]:
    kernels = [
        Entry(stage, (ours, "kernel"), f"{place}.{kind}.{theirs}.weight", True)
        for ours, theirs in PARTS.items()
    ]
    return [_norm(stage, f"{place}.layer_norm"), *kernels]


def _ffn(config: T5Config, stage: str, place: str) -> list[Entry]:
    names = {"wi": "wi", "wo": "wo"}
    if config.gated:  # the first of the two goes through the gelu
        names = {"gate": "wi_0", "wi": "wi_1", "wo": "wo"}
    kernels = [
        Entry(stage, (ours, "kernel"), f"{place}.DenseReluDense.{theirs}.weight", True)
        for ours, theirs in names.items()
    ]
    return [_norm(stage, f"{place}.layer_norm"), *kernels]
