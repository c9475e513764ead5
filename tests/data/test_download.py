"""What a download says when there is no network."""

import subprocess

import pytest

from splitjax.data import archive
from splitjax.data.archive import ArchiveError
from splitjax.data.pins import Pin


def test_pip_without_a_network_is_told(tmp_path, monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", "ERROR: no matching distribution")
    monkeypatch.setattr(archive.subprocess, "run", lambda *args, **kwargs: done)
    with pytest.raises(ArchiveError, match="made==1.0; is there a.*no match"):
        archive.download(Pin("wheel", "made", "1.0", ""), tmp_path)


def test_an_index_out_of_reach_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ArchiveError, match="fetch made==1.0; is there a network"):
        archive.download(Pin("sdist", "made", "1.0", ""), tmp_path)
