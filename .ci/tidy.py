"""Checks text files: no trailing space, one newline at the end, TOML that parses.

Usage: tidy.py [FILE ...]; without files, all that git tracks or would track.
"""

import pathlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator


def problems(path: pathlib.Path) -> Iterator[str]:
    """Yields one line `file:line: what is wrong` for each fault of a text file."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        return  # not text
    for number, line in enumerate(text.split("\n"), 1):
        if line != line.rstrip():
            yield f"{path}:{number}: trailing space"
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        yield f"{path}:{text.count(chr(10)) + 1}: want one newline at the end"
    if path.suffix == ".toml":
        try:
            tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            yield f"{path}:1: {error}"


def main(names: list[str]) -> None:
    """Prints every problem and exits with 1 if there is any."""
    if not names:
        listing = "git ls-files --cached --others --exclude-standard"
        names = subprocess.check_output(listing.split(), text=True).splitlines()
    files = [path for path in map(pathlib.Path, names) if path.is_file()]
    lines = [line for path in files for line in problems(path)]
    sys.exit("\n".join(lines) if lines else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
