"""A program asks for large pages before it starts, once, where asking is of use."""

import os
import pathlib
import subprocess
import sys

import pytest

from experiments import LARGE_PAGES, TUNABLES, large_pages

MODE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Makes a kernel's file with one mode chosen; nothing is set in the environment."""
    monkeypatch.delenv(TUNABLES, raising=False)

    def make(chosen):
        modes = ("always", "madvise", "never")
        shown = [f"[{mode}]" if mode == chosen else mode for mode in modes]
        file = tmp_path / "enabled"
        file.write_text(" ".join(shown) + "\n")
        return file

    return make


def test_they_are_asked_for_where_one_has_to_ask(kernel):
    assert large_pages(kernel("madvise")) == {TUNABLES: LARGE_PAGES}


@pytest.mark.parametrize("mode", ["always", "never"])
def test_they_are_not_where_asking_changes_nothing(kernel, mode):
    assert large_pages(kernel(mode)) == {}


def test_what_a_user_set_stays(kernel, monkeypatch):
    monkeypatch.setenv(TUNABLES, "")
    assert large_pages(kernel("madvise")) == {}


def environment_of(program, **given):
    """The environment of a program of a package that starts like the mains."""
    rest = {name: value for name, value in os.environ.items() if name != TUNABLES}
    done = subprocess.run(
        [sys.executable, *program],
        env={**rest, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(not large_pages(MODE), reason="no large pages to ask for")
def test_a_program_has_them_and_an_import_changes_nothing(tmp_path, monkeypatch):
    here = pathlib.Path(__file__).parents[2] / "experiments" / "__init__.py"
    package = tmp_path / "experiments"
    package.mkdir()
    (package / "__init__.py").write_text(here.read_text())
    show = f"import os, sys; print(os.environ.get({TUNABLES!r}), *sys.argv[1:])"
    (package / "show.py").write_text(show)
    monkeypatch.chdir(tmp_path)
    program = ("-m", "experiments.show", "--a=b c")
    assert environment_of(program) == f"{LARGE_PAGES} --a=b c"
    assert environment_of(program, **{TUNABLES: "x"}) == "x --a=b c"
    assert environment_of(("-c", "import experiments.show")) == "None"
