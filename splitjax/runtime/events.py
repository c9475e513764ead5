"""What happens at a runtime, one line of JSON an event."""

import json
import logging
import pathlib
import time
from typing import Any

LOGGER = logging.getLogger("splitjax.events")


def tell(event: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """Logs an event to the logger "splitjax.events".

    Args:
      event: its name.
      level: of `logging`.
      **facts: JSON types; never a token or a tensor.

    Example:
      >>> tell("hello", slot=0)
    """
    LOGGER.log(level, json.dumps({"event": event, "time": time.time(), **facts}))


def to_file(path: str | pathlib.Path) -> logging.Handler:
    """From now on events are also appended to a file; returns the handler.

    Example:
      >>> import tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "events.jsonl")
      >>> handler = to_file(path); tell("hello", slot=0)
      >>> LOGGER.removeHandler(handler); handler.close()
      >>> json.loads(path.read_text())["event"]
      'hello'
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    return handler
