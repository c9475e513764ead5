"""Archives are fetched by their pin, verified, and opened; never installed or run."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from typing import IO

from splitjax.core.tree import nearest
from splitjax.data.pins import COLLECTIONS, Collection, Pin

TIMEOUT_SECONDS = 20


class ArchiveError(RuntimeError):
    """An archive that is not there, cannot be had, or is not what its pin says."""


def cache() -> pathlib.Path:
    """The folder of all that is fetched: `$SPLITJAX_DATA`, or the user's cache.

    Example:
      >>> cache().name
      'splitjax'
    """
    if given := os.environ.get("SPLITJAX_DATA"):
        return pathlib.Path(given)
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "splitjax"


def cached(name: str) -> pathlib.Path | None:
    """The folder of a collection, or None where it is not complete.

    Raises:
      ArchiveError: for a name that is not pinned.

    Example:
      >>> cached("stbs")
      Traceback (most recent call last):
      ...
      splitjax.data.archive.ArchiveError: no data 'stbs': did you mean 'stsb'? ...
    """
    if name not in COLLECTIONS:
        raise ArchiveError(f"no data {name!r}: {nearest(name, tuple(COLLECTIONS))}")
    path = cache() / name
    members = COLLECTIONS[name].members.values()
    return path if all((path / member).is_file() for member in members) else None


def folder(name: str, *, fetch: bool = False) -> pathlib.Path:
    """The folder of a collection.

    Args:
      name: see `python -m splitjax.data.fetch --list`.
      fetch: whether to fetch it where it is missing.

    Raises:
      ArchiveError: when it is missing (the message has the command that fetches it),
        cannot be fetched, or has another hash than its pin.

    Example:
      >>> folder.__name__
      'folder'
    """
    if found := cached(name):
        return found
    if not fetch:
        raise ArchiveError(
            f"the data {name!r} is not in {cache()}: run "
            f"`python -m splitjax.data.fetch {name}`"
        )
    collection = COLLECTIONS[name]
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache()) as work:
        where = pathlib.Path(work)
        archives = [verified(download(pin, where), pin) for pin in collection.pins]
        made = where / "made"
        extract(collection, archives, made)
        target = cache() / name
        shutil.rmtree(target, ignore_errors=True)
        os.replace(made, target)
    return target


def verified(path: pathlib.Path, pin: Pin) -> pathlib.Path:
    """The path of an archive whose hash is that of its pin; another one is removed.

    Raises:
      ArchiveError: with both hashes.

    Example:
      >>> verified.__name__
      'verified'
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != pin.sha256:
        path.unlink()
        raise ArchiveError(
            f"{path.name} has the SHA-256 {found}; {pin.package} {pin.version} is "
            f"pinned to {pin.sha256}. It was removed: fetch it again, and if the hash "
            "stays, do not trust the source."
        )
    return path


def download(pin: Pin, into: pathlib.Path) -> pathlib.Path:
    """Fetches one archive from the registry that pip is set up for.

    Wheels come by pip. Pip would run an sdist's setup script to learn its metadata, so
    an sdist's file is looked up in the index and fetched by itself.

    Raises:
      ArchiveError: when it cannot be had.
    """
    if pin.kind == "sdist":
        return _sdist(pin, into)
    named = f"{pin.package}=={pin.version}"
    options = "--no-deps --ignore-requires-python --only-binary :all: -q --retries 1"
    command = [sys.executable, "-m", "pip", "download", *options.split()]
    command += ["--timeout", str(TIMEOUT_SECONDS), "-d", str(into), named]
    before = set(into.iterdir())
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    new = [p for p in into.iterdir() if p not in before and p.suffix == ".whl"]
    if done.returncode or len(new) != 1:
        raise ArchiveError(
            f"cannot fetch {named}; is there a network? Pip says: "
            f"{done.stderr.strip()[-500:] or 'nothing'}"
        )
    return new[0]


def _sdist(pin: Pin, into: pathlib.Path) -> pathlib.Path:
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    request = urllib.request.Request(f"{_index()}/{pin.package}/", headers=accept)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            files = json.load(answer)["files"]
        [found] = [f for f in files if f["hashes"].get("sha256") == pin.sha256]
        target = into / pathlib.PurePosixPath(found["filename"]).name
        with urllib.request.urlopen(found["url"], timeout=TIMEOUT_SECONDS) as answer:
            with target.open("wb") as file:
                shutil.copyfileobj(answer, file)
    except (OSError, ValueError, KeyError) as error:
        raise ArchiveError(
            f"cannot fetch {pin.package}=={pin.version}; is there a network, and does "
            f"the index still have that file? {type(error).__name__}: {error}"
        ) from error
    return target


def _index() -> str:
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if url := os.environ.get("PIP_INDEX_URL") or done.stdout.strip():
        return url.rstrip("/")
    from pip._internal.models.index import PyPI

    return PyPI.simple_url.rstrip("/")


def extract(
    collection: Collection, archives: list[pathlib.Path], into: pathlib.Path
) -> None:
    """Takes the named members out of archives, under the names that we give them.

    Raises:
      ArchiveError: when a member is missing, or its name leaves the folder.
    """
    into.mkdir(parents=True)
    source = archives[0]
    if collection.parts:
        source = into.parent / "joined.zip"
        with source.open("wb") as whole:
            for number, path in enumerate(archives, 1):
                with _opened(path, collection.parts.format(n=number)) as part:
                    shutil.copyfileobj(part, whole)
                path.unlink()
    for member, name in collection.members.items():
        target = (into / name).resolve()
        if not target.is_relative_to(into.resolve()):
            raise ArchiveError(f"member {name!r} would be written outside of {into}")
        with _opened(source, member) as file, target.open("wb") as out:
            shutil.copyfileobj(file, out)


@contextlib.contextmanager
def _opened(path: pathlib.Path, member: str) -> Iterator[IO[bytes]]:
    try:
        if path.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(path) as archive, archive.open(member) as file:
                yield file
        else:
            with tarfile.open(path) as archive:
                file = archive.extractfile(member)
                if file is None:
                    raise KeyError(f"{member} is no file")
                yield file
    except (KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ArchiveError(f"{path.name} has no member {member!r}: {error}") from error
