"""What a download says when there is no network."""

import subprocess

import pytest

from splitjax.data import registry
from splitjax.data.archive import ArchiveError
from splitjax.data.pins import Pin


def test_pip_without_a_network_is_told(tmp_path, monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", "ERROR: no matching distribution")
    monkeypatch.setattr(registry.subprocess, "run", lambda *args, **kwargs: done)
    with pytest.raises(ArchiveError, match="made==1.0; is there a.*no match"):
        registry.download(Pin("wheel", "made", "1.0", ""), tmp_path)


def test_an_index_out_of_reach_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ArchiveError, match="fetch made==1.0; is there a network"):
        registry.download(Pin("sdist", "made", "1.0", ""), tmp_path)


@pytest.mark.parametrize(
    ("kind", "client", "named"),
    [("npm", "npm", "made@1.0"), ("deb", "apt-get", "made=1.0")],
)
def test_each_registry_is_asked_by_its_own_client(
    kind, client, named, tmp_path, monkeypatch
):
    asked = []

    def run(command, **kwargs):
        asked.append(command)
        suffix = {"npm": ".tgz", "deb": ".deb"}[kind]
        (tmp_path / f"made{suffix}").write_bytes(b"")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(registry.subprocess, "run", run)
    assert registry.download(Pin(kind, "made", "1.0", ""), tmp_path).stem == "made"
    [command] = asked
    assert command[0] == client and named in command


@pytest.mark.parametrize("kind", ["npm", "deb"])
def test_a_client_that_is_not_installed_is_named(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    client = {"npm": "npm", "deb": "apt-get"}[kind]
    with pytest.raises(ArchiveError, match=f"there is no {client} here"):
        registry.download(Pin(kind, "made", "1.0", ""), tmp_path)


def test_lists_of_packages_are_renewed_apart_from_the_systems(tmp_path, monkeypatch):
    asked = []

    def run(command, **kwargs):
        asked.append(command)
        if len(asked) == 3:
            (tmp_path / "made.deb").write_bytes(b"")
        return subprocess.CompletedProcess(command, len(asked) == 1, "", "no package")

    monkeypatch.setattr(registry.subprocess, "run", run)
    assert registry.download(Pin("deb", "made", "1.0", ""), tmp_path).exists()
    assert [c[-1] for c in asked] == ["made=1.0", "update", "made=1.0"]
    assert all(f"-oDir::State={tmp_path / 'apt'}" in c for c in asked[1:])
