"""How a main starts: its experiment from the command line, its folder, its logging."""

import dataclasses
import pathlib
import runpy
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from splitjax.core.tree import nearest
from splitjax.data.archive import ArchiveError, cache
from splitjax.data.table import DataError
from splitjax.runtime.control import Refused
from splitjax.runtime.credentials import CredentialError
from splitjax.runtime.guard import Unauthenticated
from splitjax.runtime.server import ServerError
from splitjax.storage.checkpoint import CheckpointError
from splitjax.storage.journal import JournalError
from splitjax.storage.lock import InUse
from splitjax.storage.row_file import RowError
from splitjax.train.allocator import keep_freed
from splitjax.train.processes import end_with_parent

# Errors that are about the world, not the program: the text says what to do.
MEANT_FOR_USERS = (
    ArchiveError,
    CheckpointError,
    ConnectionError,
    CredentialError,
    DataError,
    InUse,
    JournalError,
    Refused,
    RowError,
    ServerError,
    Unauthenticated,
)


@dataclasses.dataclass(frozen=True)
class Launch:
    """What the command line gave, once absl has parsed it; see `define`."""

    holder: Any

    @property
    def experiment(self) -> Any:
        """The experiment, with the fields that were set."""
        return self.holder.value

    @property
    def run(self) -> Any:
        """The experiment as its runs have it: two processes are one split run."""
        given = self.experiment
        mode = "split" if given.mode == "processes" else given.mode
        return dataclasses.replace(given, mode=mode)

    @property
    def path(self) -> str:
        """The config file."""
        return config_flags.get_config_filename(flags.FLAGS["config"])

    @property
    def workdir(self) -> pathlib.Path:
        """`--workdir`, or runs/NAME after the config file."""
        return pathlib.Path(
            flags.FLAGS.workdir or f"runs/{pathlib.Path(self.path).stem}"
        )


def define(default: str) -> Launch:
    """Defines `--config` (a file whose `get_config()` gives an experiment) and fields.

    `--config.FIELD=value` sets a field. A field that does not exist ends the program
    with the nearest one; `--help` prints them all.

    Args:
      default: the config file where none is given.

    Example:
      >>> define.__name__
      'define'
    """
    holder = config_flags.DEFINE_config_file("config", default, lock_config=False)
    flags.DEFINE_string(
        "workdir", "", "the run's folder; by default runs/NAME after the config file"
    )
    _check_arguments(sys.argv, default)
    return Launch(holder)


def proposed(path: str, name: str) -> tuple[str, ...]:
    """What a config file proposes: its `GRID` or `ARMS`, texts as `frontier.grid` has.

    Raises:
      SystemExit: when there is no such file, it has none, or that is one text.

    Example:
      >>> proposed("configs/sft_stsb.py", "GRID")
      ('layer=1,2 rank=16,32',)
    """
    _there(path)
    found = runpy.run_path(path).get(name)
    if not found:
        flag = name.lower().rstrip("s")
        raise SystemExit(
            f"--config={path}: the file proposes no points (it has no {name}): "
            f"say which, as --{flag}='FIELD=VALUE,VALUE'"
        )
    if isinstance(found, str):
        raise SystemExit(
            f"--config={path}: {name} is a text, {found!r}, and must be a tuple of "
            f"them: {name} = ({found!r},)"
        )
    return tuple(found)


def config_arguments() -> list[str]:
    """The arguments of this command line that choose the config, for another process.

    Example:
      >>> config_arguments()
      []
    """
    given = sys.argv[1:]
    found = []
    for index, argument in enumerate(given):
        if argument == "--config" and index + 1 < len(given):
            found += [f"--config={given[index + 1]}"]
        elif argument.startswith(("--config=", "--config.")):
            found.append(argument)
    return found


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a main under absl, with programs compiled before kept in the cache."""

    def quiet(arguments: list[str]) -> None:
        # Orbax and JAX tell of every file and backend, at the level of our own news.
        logging.get_absl_handler().addFilter(_ours)
        end_with_parent()
        keep_freed()
        jax.config.update("jax_compilation_cache_dir", str(cache() / "xla"))
        try:
            main(arguments)
        except MEANT_FOR_USERS as error:
            raise SystemExit(f"{type(error).__name__}: {error}") from error

    app.run(quiet)


def _ours(record: Any) -> bool:
    return record.levelno > logging.converter.STANDARD_INFO or not any(
        part in record.pathname for part in ("orbax", "jax/_src", "tensorstore")
    )


def _check_arguments(arguments: list[str], default: str) -> None:
    """Before absl sees them: a typo, or a wish for help."""
    path = default
    for index, argument in enumerate(arguments):
        if argument.startswith("--config="):
            path = argument.partition("=")[2]
        elif argument == "--config" and index + 1 < len(arguments):
            path = arguments[index + 1]
    given = [
        argument[len("--config.") :].partition("=")[0]
        for argument in arguments
        if argument.startswith("--config.")
    ]
    wants_help = {"--help", "-h", "-help", "--helpfull"} & set(arguments)
    if path != default:
        _there(path)
    if not given and not wants_help:
        return
    fields = dataclasses.fields(load(path))
    names = tuple(field.name for field in fields)
    for name in given:
        if name.split("[")[0] not in names:
            raise SystemExit(f"--config.{name}: no such option; {nearest(name, names)}")
    if wants_help:
        sys.stdout.write(describe(load(path), path) + "\n")


def load(path: str) -> Any:
    """The experiment of a config file.

    Raises:
      SystemExit: when there is no such file (the message lists its neighbors), or it
        has no `get_config`.
    """
    _there(path)
    found = runpy.run_path(path)
    if "get_config" not in found:
        raise SystemExit(f"--config={path}: the file has no function get_config()")
    return found["get_config"]()


def _there(path: str) -> None:
    if not pathlib.Path(path).is_file():
        there = sorted(str(p) for p in pathlib.Path(path).parent.glob("*.py"))
        raise SystemExit(f"--config={path}: no such file; {nearest(path, there)}")


def describe(experiment: Any, path: str = "") -> str:
    """A table of an experiment's fields: type, value here, meaning.

    Example:
      >>> from splitjax.train.experiment import Experiment
      >>> describe(Experiment()).splitlines()[1].split()[:2]
      ['--config.task', 'str']
    """
    lines = [f"Options of {path or type(experiment).__name__}:"]
    for field in dataclasses.fields(experiment):
        kind = getattr(field.type, "__name__", str(field.type))
        value = getattr(experiment, field.name)
        meaning = field.metadata.get("meaning", "")
        lines.append(f"  --config.{field.name:<18} {kind:<8} {value!r:<12} {meaning}")
    return "\n".join(lines)
