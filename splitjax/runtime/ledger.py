"""A ledger: a state on disk, and all that came after it."""

import contextlib
import pathlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from splitjax.core.tree import Tree
from splitjax.runtime.control import Refused
from splitjax.storage.checkpoint import Checkpoints
from splitjax.storage.journal import FULL, Journal, JournalFull
from splitjax.storage.lock import exclusive

CAME, WENT = 1, 2  # kinds of records: what a party was sent, and what it answered


class Ledger:
    """A checkpoint, and a journal of what came and went since it was taken.

    Args:
      folder: of one slot.
      config: what the run depends on, as JSON types.

    Raises:
      InUse: when another process has the folder.
      CheckpointError: when the folder holds the run of another config.
      JournalError: when the journal is damaged.
      Refused: when the disk is full, as all its methods; what was there is there.

    Example:
      >>> import tempfile, numpy as np
      >>> with contextlib.closing(Ledger(tempfile.mkdtemp(), {"rank": 8})) as ledger:
      ...     ledger.save(0, {"w": np.zeros(1, np.float32)}, {"tick": 0})
      ...     place = ledger.write(CAME, b"up")
      ...     ledger.read(place), [kind for _, kind, _ in ledger]
      (b'up', [1])
    """

    def __init__(self, folder: str | pathlib.Path, config: dict):
        self.folder = pathlib.Path(folder)
        self._journal: Journal | None = None
        with room(), contextlib.ExitStack() as stack:
            stack.enter_context(exclusive(self.folder))
            self._checkpoints = Checkpoints(self.folder, config)
            if not self.fresh:
                self._open(self._checkpoints.latest())
            self._held = stack.pop_all()
        self._syncs = ThreadPoolExecutor(1, "sync")

    @property
    def fresh(self) -> bool:
        """Whether there is no checkpoint yet."""
        return self._checkpoints.latest() is None

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Yields `(place, kind, data)` of what the journal has."""
        yield from self._journal or ()

    def save(self, step: int, tree: Tree, facts: dict[str, Any]) -> None:
        """Takes a checkpoint, and begins a new journal."""
        with room():
            self._checkpoints.save(step, tree, facts)
            self._open(step)

    def load(self, like: Tree) -> tuple[Tree, dict]:
        """The checkpoint's tree, as `like` has its leaves, and its facts."""
        return self._checkpoints.restore(like)

    def write(self, kind: int, data: bytes) -> int:
        """Adds to the journal; returns the place, for `read`. See `syncing`."""
        assert self._journal is not None, "no checkpoint was taken"
        with room():
            return self._journal.append(kind, data, sync=False)

    @contextlib.contextmanager
    def syncing(self) -> Iterator[None]:
        """What was written is on disk when this ends; other work goes on meanwhile.

        When it fails, that work was done on what a crash may lose: do not tell of it,
        and open the ledger again.
        """
        assert self._journal is not None
        future = self._syncs.submit(self._journal.sync)
        try:
            yield
        finally:
            with room():
                future.result()

    def read(self, place: int) -> bytes:
        """What `write` put at a place."""
        assert self._journal is not None
        return self._journal.read(place)[1]

    def rewind(self) -> None:
        """Forgets all that came after the checkpoint."""
        step = self._checkpoints.latest()
        assert step is not None and self._journal is not None
        self._journal.close()
        self._journal.path.unlink()
        with room():
            self._open(step)

    def close(self) -> None:
        """Lets the folder go."""
        if self._journal is not None:
            self._journal.close()
        self._syncs.shutdown()
        self._held.close()

    def _open(self, step: int | None) -> None:
        if self._journal is not None:
            self._journal.close()
        path = self.folder / "journal" / f"{step:08d}"
        self._journal = Journal(path)
        for other in path.parent.iterdir():
            if other != path:
                other.unlink()


@contextlib.contextmanager
def room() -> Iterator[None]:
    """Gives a full disk its type; the edge is told, and can come again."""
    try:
        yield
    except (JournalFull, OSError, ValueError) as error:
        if not _is_full(error):
            raise
        raise Refused("full", f"the cloud's disk is full: {error}") from error


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    # TensorStore, which writes Orbax's arrays, has no type for it, only this text.
    codes = re.findall(r"os_error_code='(\d+)'", str(error))
    return isinstance(error, JournalFull) or any(int(code) in FULL for code in codes)
