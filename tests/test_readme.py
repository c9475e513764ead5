"""What the README shows is what there is."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_its_examples_run(capsys):
    cut, compressed = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(cut, "README.md", "exec"), {"__name__": "readme"})
    assert "bytes_up" in capsys.readouterr().out
    found: dict = {}
    exec(compile(compressed, "README.md", "exec"), found)
    assert found["dense"]["wi"]["kernel"].shape == (64, 256)
    assert found["small"]["wi"]["kernel"].v.shape == (64, 8)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"experiments\.(\w+)", README))))
def test_its_programs_exist(name):
    assert (ROOT / "experiments" / f"{name}.py").is_file()


def test_its_files_exist():
    named = re.findall(r"\]\(([\w./-]+)\)|(configs/\w+\.py|colab/\w+\.ipynb)", README)
    for link, file in named:
        assert (ROOT / (link or file)).exists(), link or file
