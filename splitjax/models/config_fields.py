"""What a Hugging Face config.json must say for a model to be built here."""

from collections.abc import Mapping, Sequence
from typing import Any

from splitjax.core.tree import nearest

FUSED = ("", "xla", "auto")


def check_fused(fused: str) -> None:
    """Raises a ValueError for another way to compute layers than one of `FUSED`.

    Example:
      >>> check_fused("xal")
      Traceback (most recent call last):
      ...
      ValueError: fused='xal': expected one of ('', 'xla', 'auto')
    """
    if not isinstance(fused, str) or fused not in FUSED:
        raise ValueError(f"fused={fused!r}: expected one of {FUSED}")


def family_in(fields: Mapping[str, Any], families: Sequence[str]) -> str:
    """The `model_type` of a config.json.

    Args:
      fields: the parsed file.
      families: those that are built.

    Raises:
      ValueError: for another one.

    Example:
      >>> family_in({"model_type": "gpt3"}, ("gpt2", "llama"))
      Traceback (most recent call last):
      ...
      ValueError: config.json has model_type 'gpt3': did you mean 'gpt2'? ...
    """
    found = fields.get("model_type", "")
    if found not in families:
        raise ValueError(
            f"config.json has model_type {found!r}: {nearest(found, tuple(families))}"
        )
    return found


def check_only(fields: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    """Refuses options that change what is computed, where they are set otherwise.

    Args:
      fields: the parsed file; what it does not say is as it must be.
      only: such options, at the value that is built.

    Raises:
      ValueError: for another value.

    Example:
      >>> check_only({"hidden_act": "relu"}, {"hidden_act": "gelu"})
      Traceback (most recent call last):
      ...
      ValueError: config.json has hidden_act 'relu'; only 'gelu' is built here
    """
    for name, value in only.items():
        if fields.get(name, value) != value:
            raise ValueError(
                f"config.json has {name} {fields[name]!r}; only {value!r} is built here"
            )
