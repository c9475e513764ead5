"""The tensors of a ViT folder."""

from splitjax.models.name_table import Entry
from splitjax.models.vit_config import VitConfig

LAYER = {
    "attention/norm": "layernorm_before",
    "attention/query": "attention.attention.query",
    "attention/key": "attention.attention.key",
    "attention/value": "attention.attention.value",
    "attention/out": "attention.output.dense",
    "ffn/norm": "layernorm_after",
    "ffn/wi": "intermediate.dense",
    "ffn/wo": "output.dense",
}


def entries(config: VitConfig) -> list[Entry]:
    """All leaves of a model, its classifier last.

    Example:
      >>> entries(VitConfig())[2].joined
      (16, 16, 3)
    """
    patch = "embeddings.patch_embeddings.projection"
    pixels = (config.patch, config.patch, config.channels)
    out = [
        Entry("embed", ("cls",), "embeddings.cls_token"),
        Entry("embed", ("position",), "embeddings.position_embeddings"),
        Entry("embed", ("patch", "kernel"), f"{patch}.weight", True, joined=pixels),
        Entry("embed", ("patch", "bias"), f"{patch}.bias"),
    ]
    for i in range(config.layers):
        for place, tensor in LAYER.items():
            block, _, name = place.partition("/")
            out += _layer(f"layer_{i}/{block}", name, f"encoder.layer.{i}.{tensor}")
    out += _layer("norm", "norm", "layernorm")
    return out + _layer("head", "classifier", "classifier")


def _layer(stage: str, name: str, tensor: str) -> list[Entry]:
    norm = name == "norm"
    leaf = "scale" if norm else "kernel"
    return [
        Entry(stage, (name, leaf), f"{tensor}.weight", not norm),
        Entry(stage, (name, "bias"), f"{tensor}.bias"),
    ]
