"""The tensors of a BERT-family folder."""

from splitjax.models.bert_config import BertConfig
from splitjax.models.name_table import Entry

BERT = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "norm": "attention.output.LayerNorm",
}
MPNET = {
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "out": "attention.attn.o",
    "norm": "attention.LayerNorm",
}
FFN = {"wi": "intermediate.dense", "wo": "output.dense", "norm": "output.LayerNorm"}


def entries(config: BertConfig) -> list[Entry]:
    """All leaves of a dense model, the pooler last.

    The relative bias of MPNet is one tensor and a leaf in each layer.

    Example:
      >>> config = BertConfig(layers=1)
      >>> entries(config)[-2].tensor
      'pooler.dense.weight'
    """
    out = []

    def table(stage, name, tensor):
        out.append(Entry(stage, (name, "embedding"), f"{tensor}.weight"))

    def layer(stage, name, tensor):
        if name == "norm":
            out.append(Entry(stage, (name, "scale"), f"{tensor}.weight"))
        else:
            out.append(Entry(stage, (name, "kernel"), f"{tensor}.weight", True))
        out.append(Entry(stage, (name, "bias"), f"{tensor}.bias"))

    table("embed", "word", "embeddings.word_embeddings")
    table("embed", "position", "embeddings.position_embeddings")
    if config.types:
        table("embed", "type", "embeddings.token_type_embeddings")
    layer("embed", "norm", "embeddings.LayerNorm")
    attention = MPNET if config.family == "mpnet" else BERT
    for i in range(config.layers):
        for name, tensor in attention.items():
            layer(f"layer_{i}/attention", name, f"encoder.layer.{i}.{tensor}")
        if config.buckets:
            shared = "encoder.relative_attention_bias"
            table(f"layer_{i}/attention", "relative_bias", shared)
        for name, tensor in FFN.items():
            layer(f"layer_{i}/ffn", name, f"encoder.layer.{i}.{tensor}")
    layer("pool", "pooler", "pooler.dense")
    return out
