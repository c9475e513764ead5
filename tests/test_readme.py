"""What the README shows is what there is."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_its_example_runs(capsys):
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "bytes_up" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(set(re.findall(r"experiments\.(\w+)", README))))
def test_its_programs_exist(name):
    assert (ROOT / "experiments" / f"{name}.py").is_file()


def test_its_files_exist():
    named = re.findall(r"\]\(([\w./-]+)\)|(configs/\w+\.py|colab/\w+\.ipynb)", README)
    for link, file in named:
        assert (ROOT / (link or file)).exists(), link or file
