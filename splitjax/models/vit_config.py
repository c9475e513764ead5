"""What is fixed of a vision transformer, and Hugging Face's config.json of it."""

import dataclasses
from typing import Any

from splitjax.models.config_fields import check_only, family_in


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """Sizes and constants of a ViT; the defaults are ViT-Base/16's of ImageNet.

    Attributes:
      size: height and width of a picture.
      patch: height and width of a patch; it divides the size.
      channels: of a picture.
      width: D.
      heads: H; it divides the width.
      layers: L.
      ffn: F, the width inside the feed-forward block.
      classes: how many the head tells apart.
      eps: of the layer norms.
      dropout: after the embeddings, attention and feed-forward block.
      attention_dropout: of the attention's probabilities.
      init_std: of fresh kernels.

    Raises:
      ValueError: when the numbers do not fit each other.

    Example:
      >>> VitConfig().tokens
      197
    """

    size: int = 224
    patch: int = 16
    channels: int = 3
    width: int = 768
    heads: int = 12
    layers: int = 12
    ffn: int = 3072
    classes: int = 1000
    eps: float = 1e-12
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02

    def __post_init__(self):
        if self.size % self.patch:
            raise ValueError(
                f"pictures of {self.size} pixels are no whole patches of {self.patch}"
            )
        if self.width % self.heads:
            raise ValueError(
                f"a width of {self.width} is no multiple of {self.heads} heads"
            )

    @property
    def tokens(self) -> int:
        """T: the patches, and one token for the class before them."""
        return (self.size // self.patch) ** 2 + 1

    @property
    def family(self) -> str:
        """The `model_type` of config.json."""
        return "vit"


ONLY = {"hidden_act": "gelu", "qkv_bias": True}


def from_json(fields: dict[str, Any]) -> VitConfig:
    """Reads the fields of a Hugging Face config.json.

    Args:
      fields: the parsed file; its `model_type` is "vit".

    Raises:
      ValueError: for another model, or an option of it that is not built here.

    Example:
      >>> from_json({"model_type": "vit", "patch_size": 32}).tokens
      50
    """
    family_in(fields, ("vit",))
    check_only(fields, ONLY)
    names = fields.get("id2label")
    return VitConfig(
        size=fields.get("image_size", 224),
        patch=fields.get("patch_size", 16),
        channels=fields.get("num_channels", 3),
        width=fields.get("hidden_size", 768),
        heads=fields.get("num_attention_heads", 12),
        layers=fields.get("num_hidden_layers", 12),
        ffn=fields.get("intermediate_size", 3072),
        classes=len(names) if names else fields.get("num_labels", 2),
        eps=fields.get("layer_norm_eps", 1e-12),
        dropout=fields.get("hidden_dropout_prob", 0.0),
        attention_dropout=fields.get("attention_probs_dropout_prob", 0.0),
        init_std=fields.get("initializer_range", 0.02),
    )


def to_json(config: VitConfig) -> dict[str, Any]:
    """The fields of a Hugging Face config.json: undoes `from_json`.

    Example:
      >>> from_json(to_json(VitConfig(classes=10))).classes
      10
    """
    names = {str(i): f"LABEL_{i}" for i in range(config.classes)}
    return {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        "image_size": config.size,
        "patch_size": config.patch,
        "num_channels": config.channels,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "intermediate_size": config.ffn,
        "id2label": names,
        "label2id": {name: int(i) for i, name in names.items()},
        "layer_norm_eps": config.eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "initializer_range": config.init_std,
        **ONLY,
    }
