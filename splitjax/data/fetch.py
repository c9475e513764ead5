"""Fetches pinned data and weights: `python -m splitjax.data.fetch NAME...`."""

import argparse
import sys
from collections.abc import Sequence

from splitjax.data.archive import ArchiveError, cached, folder
from splitjax.data.pins import COLLECTIONS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 1 when something could not be fetched.

    Example:
      >>> main(["--list"])  # doctest: +ELLIPSIS
      minilm ...
      0
    """
    parser = argparse.ArgumentParser(prog="splitjax.data.fetch", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch")
    parser.add_argument("--all", action="store_true", help="fetch everything")
    parser.add_argument("--list", action="store_true", help="list what there is")
    options = parser.parse_args(arguments)
    if options.list or not (options.all or options.names):
        for name, collection in COLLECTIONS.items():
            state = "cached" if cached(name) else "-"
            sys.stdout.write(f"{name:<16} {state:<7} {collection.about}\n")
        return 0
    failed = 0
    for name in COLLECTIONS if options.all else options.names:
        try:
            sys.stdout.write(f"{name}: {folder(name, fetch=True)}\n")
        except ArchiveError as error:
            sys.stderr.write(f"{name}: {error}\n")
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
