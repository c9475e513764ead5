"""What a run says of messages: of another task than agreed to, or not finite."""

import logging
from typing import Any

from splitjax.core.algorithm import NONFINITE


def told(facts: dict[str, Any], metrics: dict[str, Any], step: int) -> None:
    """Keeps the verdict of a step's scrutinizer, and warns at the first bad one.

    Args:
      facts: of the run: "scrutinizer" becomes the gap now, and the first step (or None)
        whose gradients were those of another task, and were blown up.
      metrics: of the step; without a scrutinizer's nothing happens.
      step: its number.

    Example:
      >>> facts = {}
      >>> told(facts, {"gap": 0.7, "hijacked": 0.0, "blown_up": 0.0}, 9)
      >>> facts["scrutinizer"]
      {'gap': 0.7, 'hijacked_at': None, 'blown_up_at': None}
    """
    if "hijacked" not in metrics:
        return
    before = facts.get("scrutinizer", {})
    seen: dict[str, Any] = {"gap": round(float(metrics["gap"]), 4)}
    for name, why in (
        ("hijacked", "are not those of a classifier: the cloud may hijack the edge"),
        ("blown_up", "have grown a hundredfold or are not finite"),
    ):
        seen[f"{name}_at"] = before.get(f"{name}_at")
        if float(metrics[name]) and seen[f"{name}_at"] is None:
            seen[f"{name}_at"] = step
            logging.warning("step %d: the gradients that come back %s", step, why)
    facts["scrutinizer"] = seen


def counted(facts: dict[str, Any], metrics: dict[str, Any], step: int) -> None:
    """Keeps how many values codecs have replaced, and warns of the first.

    A codec sends zero, say, for a NaN: the loss stays finite, and only this tells.

    Args:
      facts: of the run: "nonfinite" becomes the count so far and its first step; there
        is none while all is finite.
      metrics: of the step; see `core.codec.nonfinite`.
      step: its number.

    Example:
      >>> facts = {}
      >>> counted(facts, {"loss": 1.0, "link_0/nonfinite": 0}, 8)
      >>> counted(facts, {"loss": 1.0, "link_0/nonfinite": 3}, 9)
      >>> facts
      {'nonfinite': {'values': 3, 'first_at': 9}}
    """
    where = {name: int(v) for name, v in metrics.items() if name.endswith(NONFINITE)}
    more = sum(where.values())
    if not more:
        return
    seen = facts.get("nonfinite")
    if seen is None:
        seen = {"values": 0, "first_at": step}
        at = ", ".join(name for name, count in where.items() if count)
        logging.warning(
            "step %d: %d values of its messages are not finite, or too large for their "
            "codec, and were replaced (%s): take a lower learning rate, or clip",
            step,
            more,
            at,
        )
    facts["nonfinite"] = {**seen, "values": seen["values"] + more}
