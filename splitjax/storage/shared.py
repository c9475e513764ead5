"""A folder that all hosts of a job share."""

import os
import pathlib
import tempfile

import jax

from splitjax.core.job import at_first, gather


class NotShared(ValueError):
    """A folder that not all processes of a job see."""


def make_shared(folder: pathlib.Path) -> None:
    """Makes a folder, and checks that every process of the job sees the same one.

    Raises:
      NotShared: on every process; it names those that see another one, or none.
      OSError: on every process, when process 0 cannot write there.

    Example:
      >>> make_shared(pathlib.Path(tempfile.mkdtemp()) / "run")
    """
    if not jax.distributed.is_initialized():
        folder.mkdir(parents=True, exist_ok=True)
        return
    at = "the run's folder"
    mark = folder / gather(at, at_first(at, lambda: _leave(folder), OSError))[0]
    sees = gather(at, os.path.exists(mark))
    if jax.process_index() == 0:
        mark.unlink()
    if blind := [str(number) for number, one in enumerate(sees) if not one]:
        raise NotShared(
            f"process {', '.join(blind)} (of {len(sees)}) does not see what process 0 "
            f"writes in {folder}: the hosts of a job must share its folder (a network "
            "file system at the same path), for each writes a part of a checkpoint"
        )


def _leave(folder: pathlib.Path) -> str:
    """Makes the folder, and a file in it that is nowhere else; the file's name."""
    folder.mkdir(parents=True, exist_ok=True)
    file, path = tempfile.mkstemp(prefix="shared.", dir=folder)
    os.close(file)
    return pathlib.Path(path).name
