"""Arrays that took long to make, kept in the cache by what decided them."""

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from splitjax.data.archive import cache

Arrays = dict[str, Any]


def kept(about: dict[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """What `make` gives; made once, and then read again by every run.

    Args:
      about: all that decides the result, as JSON types.
      make: gives arrays by name.

    Example:
      >>> made = kept({"doctest": 1}, lambda: {"a": np.ones(2)})
      >>> kept({"doctest": 1}, lambda: {})["a"].tolist()
      [1.0, 1.0]
    """
    from safetensors.numpy import load_file, save_file

    text = json.dumps(about, sort_keys=True).encode()
    name = hashlib.sha256(text).hexdigest()[:20]
    path = cache() / "bridges" / f"{name}.safetensors"
    if not path.exists():
        # safetensors writes the memory of an array, whatever its strides say.
        made = {k: np.ascontiguousarray(v) for k, v in make().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file(made, part)
        part.rename(path)
        logging.info("kept in %s", path)
    return load_file(path)


def content(names: tuple[str, ...] | list[str]) -> dict[str, str]:
    """Digests of those names that are files or folders; pinned data needs none.

    Example:
      >>> content(("snli",))
      {}
    """
    found = {}
    for name in names:
        path = pathlib.Path(name)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        if path.exists():
            made = hashlib.sha256()
            for file in files:
                made.update(file.read_bytes() if file.is_file() else b"")
            found[name] = made.hexdigest()
    return found
