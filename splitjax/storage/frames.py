"""Frames that one side keeps, to read them again instead of being sent them again."""

import pathlib
import re

from splitjax.storage.whole import whole


class Frames:
    """Frames by name, one file each, in a folder.

    After a resume the frames past the step of the checkpoint are dropped: they are sent
    and counted anew, as in an undisturbed run.

    Args:
      folder: where the files lie.
      step: the step that the run goes on from.

    Example:
      >>> import tempfile
      >>> kept = Frames(tempfile.mkdtemp())
      >>> kept.get("1-2-3") is None
      True
      >>> kept.put("1-2-3", 0, b"frame")
      >>> kept.get("1-2-3")
      b'frame'
    """

    def __init__(self, folder: str | pathlib.Path, step: int = 0):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._paths: dict[str, pathlib.Path] = {}
        for path in self.folder.glob("*.frame"):
            number, _, name = path.stem.partition("_")
            if int(number) < step:
                self._paths[name] = path
            else:
                path.unlink()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._paths)

    def get(self, name: str) -> bytes | None:
        """The bytes of a frame, or None."""
        path = self._paths.get(name)
        return None if path is None else path.read_bytes()

    def put(self, name: str, step: int, data: bytes) -> None:
        """Keeps a frame that arrived in a step.

        Raises:
          ValueError: for a name that is not made of letters, digits and "-".
          OSError: when it cannot be written; nothing is left of it then.
        """
        if not re.fullmatch(r"[\w-]+", name) or "_" in name:
            raise ValueError(f"frame name {name!r}: letters, digits and '-' only")
        path = self.folder / f"{step:08d}_{name}.frame"
        with whole(path) as file:
            file.write(data)
        self._paths[name] = path
