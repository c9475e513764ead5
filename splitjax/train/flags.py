"""An experiment's options on the command line."""

import dataclasses
import runpy
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

from splitjax.core.tree import nearest


def define(default: str) -> Any:
    """Defines `--config` (a file whose `get_config()` gives an experiment) and fields.

    `--config.FIELD=value` sets a field. A field that does not exist ends the program
    with the nearest one; `--help` prints them all.

    Args:
      default: the config file where none is given.

    Returns:
      A holder whose `value` is the experiment, after absl has parsed the flags.

    Example:
      >>> define.__name__
      'define'
    """
    holder = config_flags.DEFINE_config_file("config", default, lock_config=False)
    flags.DEFINE_string(
        "workdir", "", "the run's folder; by default runs/NAME after the config file"
    )
    _check_arguments(sys.argv, default)
    return holder


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
    if not given and not wants_help:
        return
    fields = dataclasses.fields(load(path))
    names = tuple(field.name for field in fields)
    for name in given:
        if name not in names:
            raise SystemExit(f"--config.{name}: no such option; {nearest(name, names)}")
    if wants_help:
        sys.stdout.write(describe(load(path), path) + "\n")


def load(path: str) -> Any:
    """The experiment of a config file.

    Raises:
      FileNotFoundError: when there is no such file.
    """
    return runpy.run_path(path)["get_config"]()


def describe(experiment: Any, path: str = "") -> str:
    """A table of an experiment's fields: type, value here, meaning.

    Example:
      >>> from splitjax.train.experiment import Experiment
      >>> describe(Experiment()).splitlines()[1].split()[:2]
      ['--config.task', 'str']
    """
    lines = [f"Options of {path or type(experiment).__name__}:"]
    for field in dataclasses.fields(experiment):
        kind = field.type if isinstance(field.type, str) else str(field.type)
        kind = getattr(field.type, "__name__", kind)
        value = getattr(experiment, field.name)
        meaning = field.metadata.get("meaning", "")
        lines.append(f"  --config.{field.name:<18} {kind:<8} {value!r:<12} {meaning}")
    return "\n".join(lines)
