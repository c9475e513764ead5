"""What a run says of a cloud whose gradients are not of the task it agreed to."""

import logging
from typing import Any


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
