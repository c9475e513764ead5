"""Files that are there whole, or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def whole(path: pathlib.Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A file to write, that gets its name when all of it is on disk.

    What had the name stays until then, also where the disk is full or the power goes.

    Args:
      path: of the file; the same with the suffix ".part" is used up.
      mode: who may read it; by default its owner alone.

    Raises:
      OSError: when it cannot be written; nothing is left of it then.

    Example:
      >>> import tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "facts.json")
      >>> with whole(path) as file:
      ...     _ = file.write(b"{}")
      >>> path.read_text(), [found.name for found in path.parent.iterdir()]
      ('{}', ['facts.json'])
    """
    part = path.with_suffix(".part")
    number = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with open(number, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    settle(path.parent)


def settle(path: pathlib.Path) -> None:
    """Returns when a file, or the names in a folder, are on disk.

    Example:
      >>> settle(pathlib.Path("."))
    """
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
