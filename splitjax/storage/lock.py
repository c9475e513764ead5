"""A folder that one process at a time may use, or one job of several."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from splitjax.core.job import at_first


class InUse(RuntimeError):
    """Another process uses the folder."""


@contextlib.contextmanager
def exclusive(folder: str | pathlib.Path) -> Iterator[None]:
    """Holds a folder until the context ends, or the process does.

    In a job of several processes all call it, and process 0 holds it for them.

    Raises:
      InUse: when another process or job, or another context of this one, holds it; on
        every process of the job.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> with exclusive(folder), exclusive(folder):
      ...     pass
      Traceback (most recent call last):
      ...
      splitjax.storage.lock.InUse: ... is in use by process ...
    """
    with contextlib.ExitStack() as held:

        def take() -> None:
            held.enter_context(_locked(pathlib.Path(folder)))

        at_first("the lock of the run's folder", take, InUse)
        yield


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(file, 20).decode() or "unknown"
            raise InUse(
                f"{folder} is in use by process {owner}: stop it, or take another "
                "--workdir"
            ) from None
        os.truncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(file)
