"""The families of models that a Hugging Face folder may hold."""

import dataclasses
from collections.abc import Callable
from typing import Any

from splitjax.models import (
    bert_config,
    bert_table,
    decoder_config,
    decoder_table,
    t5_config,
    t5_table,
    vit_config,
    vit_table,
)
from splitjax.models.config_fields import family_in
from splitjax.models.name_table import Entry


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family's folder is read and written.

    Attributes:
      from_json: a config from the fields of a config.json.
      to_json: undoes `from_json`.
      entries: the name table of a config.
      own: how the tensors of the model begin; others belong to heads.
      optional: stages that a folder need not have.
    """

    from_json: Callable[[dict[str, Any]], Any]
    to_json: Callable[[Any], dict[str, Any]]
    entries: Callable[[Any], list[Entry]]
    own: tuple[str, ...]
    optional: tuple[str, ...] = ()


BERT = Family(
    bert_config.from_json,
    bert_config.to_json,
    bert_table.entries,
    ("embeddings.", "encoder.", "pooler."),
    ("pool",),
)
GPT2 = Family(
    decoder_config.from_json,
    decoder_config.to_json,
    decoder_table.entries,
    ("wte.", "wpe.", "h.", "ln_f."),
)
LLAMA = dataclasses.replace(GPT2, own=("embed_tokens.", "layers.", "norm."))
T5 = Family(
    t5_config.from_json,
    t5_config.to_json,
    t5_table.entries,
    ("shared.", "encoder.", "decoder."),
)
VIT = Family(
    vit_config.from_json,
    vit_config.to_json,
    vit_table.entries,
    ("embeddings.", "encoder.", "layernorm."),
    ("head",),
)

# By the `model_type` of config.json.
FAMILIES = {
    "bert": BERT,
    "mpnet": BERT,
    "gpt2": GPT2,
    "llama": LLAMA,
    "t5": T5,
    "vit": VIT,
}


def family_of(name: str) -> Family:
    """The family of a `model_type`.

    Raises:
      ValueError: for a model that is not built here; those that are, are named.

    Example:
      >>> family_of("gpt3")
      Traceback (most recent call last):
      ...
      ValueError: config.json has model_type 'gpt3': did you mean 'gpt2'? ...
    """
    return FAMILIES[family_in({"model_type": name}, tuple(FAMILIES))]
