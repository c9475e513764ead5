"""The tensors of a GPT-2 or Llama folder, and of a GGUF archive of the Llama form."""

from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.name_table import Entry

LLAMA = {
    "attention/norm": "input_layernorm",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.o_proj",
    "ffn/norm": "post_attention_layernorm",
    "ffn/gate": "mlp.gate_proj",
    "ffn/wi": "mlp.up_proj",
    "ffn/wo": "mlp.down_proj",
}
GGUF = {
    "attention/norm": "attn_norm",
    "attention/query": "attn_q",
    "attention/key": "attn_k",
    "attention/value": "attn_v",
    "attention/out": "attn_output",
    "ffn/norm": "ffn_norm",
    "ffn/gate": "ffn_gate",
    "ffn/wi": "ffn_up",
    "ffn/wo": "ffn_down",
}
GPT2 = {
    "attention/norm": "ln_1",
    "attention/query": "attn.c_attn",
    "attention/key": "attn.c_attn",
    "attention/value": "attn.c_attn",
    "attention/out": "attn.c_proj",
    "ffn/norm": "ln_2",
    "ffn/wi": "mlp.c_fc",
    "ffn/wo": "mlp.c_proj",
}
PARTS = {"query": (0, 3), "key": (1, 3), "value": (2, 3)}


def entries(config: DecoderConfig) -> list[Entry]:
    """All leaves of a model as Hugging Face names them.

    GPT-2's kernels are stored as ours, (in, out), its queries, keys and values side by
    side in one tensor. A head that is not tied is read of the embedding's table where
    the folder has none.

    Example:
      >>> entries(DecoderConfig(tied=False))[-1].instead
      'embed_tokens.weight'
    """
    if config.family == "gpt2":
        out = _table("wte", "wpe")
        for i in range(config.layers):
            for place, tensor in GPT2.items():
                part = PARTS.get(place.rpartition("/")[2], (0, 1))
                out += _layer(i, place, f"h.{i}.{tensor}", part=part, bias=True)
        out += _norm("ln_f", bias=True)
        return out + _head(config, "wte.weight", "lm_head.weight")
    return _llama(config, "embed_tokens", "layers", LLAMA, "norm", "lm_head")


def gguf_entries(config: DecoderConfig) -> list[Entry]:
    """All leaves of a model of the Llama form as a GGUF archive names them.

    Example:
      >>> gguf_entries(DecoderConfig(layers=1))[1].tensor
      'blk.0.attn_norm.weight'
    """
    return _llama(config, "token_embd", "blk", GGUF, "output_norm", "output")


def _llama(
    config: DecoderConfig,
    word: str,
    layers: str,
    names: dict[str, str],
    norm: str,
    head: str,
) -> list[Entry]:
    out = _table(word)
    for i in range(config.layers):
        for place, tensor in names.items():
            out += _layer(i, place, f"{layers}.{i}.{tensor}", turned=True)
    return out + _norm(norm) + _head(config, f"{word}.weight", f"{head}.weight")


def _table(word: str, position: str = "") -> list[Entry]:
    out = [Entry("embed", ("word", "embedding"), f"{word}.weight")]
    if position:
        out.append(Entry("embed", ("position", "embedding"), f"{position}.weight"))
    return out


def _layer(
    index: int,
    place: str,
    tensor: str,
    *,
    turned: bool = False,
    part: tuple[int, int] = (0, 1),
    bias: bool = False,
) -> list[Entry]:
    block, _, name = place.partition("/")
    stage = f"layer_{index}/{block}"
    leaf = "scale" if name == "norm" else "kernel"
    turned = turned and name != "norm"
    out = [Entry(stage, (name, leaf), f"{tensor}.weight", turned, part)]
    if bias:
        out.append(Entry(stage, (name, "bias"), f"{tensor}.bias", False, part))
    return out


def _norm(tensor: str, *, bias: bool = False) -> list[Entry]:
    out = [Entry("norm", ("norm", "scale"), f"{tensor}.weight")]
    if bias:
        out.append(Entry("norm", ("norm", "bias"), f"{tensor}.bias"))
    return out


def _head(config: DecoderConfig, table: str, own: str) -> list[Entry]:
    if config.tied:
        return []
    return [Entry("head", ("out", "kernel"), own, True, instead=table)]
