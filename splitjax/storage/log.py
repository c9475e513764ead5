"""The log of a run: one JSON line a step, and the same as TensorBoard scalars."""

import json
import pathlib


class Log:
    """Appends to `metrics.jsonl` and to TensorBoard events in a folder.

    After a resume the lines past the step of the checkpoint are cut off, so that the
    file is that of an undisturbed run.

    Args:
      folder: the run's folder.
      step: the step to go on from; lines with a later one are dropped.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> log = Log(folder)
      >>> log.write(1, loss=0.5); log.close()
      >>> pathlib.Path(folder, "metrics.jsonl").read_text()
      '{"step": 1, "loss": 0.5}\\n'
    """

    def __init__(self, folder: str | pathlib.Path, step: int = 0):
        from tensorboardX import SummaryWriter

        path = pathlib.Path(folder, "metrics.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read(folder) if line["step"] <= step]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=step)

    def write(self, step: int, **values: float) -> None:
        """Writes one line."""
        numbers = {name: float(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes both files."""
        self._file.close()
        self._board.close()


def read(folder: str | pathlib.Path) -> list[dict]:
    """The lines of a run's log; a line cut short by a crash is left out.

    Example:
      >>> read("/nonexistent")
      []
    """
    path = pathlib.Path(folder, "metrics.jsonl")
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
