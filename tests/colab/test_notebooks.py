"""Each notebook is its script, cell by cell, and holds no outputs."""

import pathlib

import jupytext
import pytest

COLAB = pathlib.Path(__file__).parents[2] / "colab"
SCRIPTS = sorted(COLAB.glob("*.py"))


def test_there_are_notebooks():
    assert SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script(script):
    made = jupytext.read(script)
    found = jupytext.read(script.with_suffix(".ipynb"))
    again = f"make it again: jupytext --to ipynb colab/{script.name}"
    assert [(c.cell_type, c.source) for c in found.cells] == [
        (c.cell_type, c.source) for c in made.cells
    ], again
    assert not any(c.get("outputs") for c in found.cells)
