import ast
import pathlib

import pytest

from splitjax.data.benchmarks import BENCHMARKS, GLUE
from splitjax.data.images import IMAGES
from splitjax.data.stream import CORPORA
from splitjax.train import flags
from splitjax.train.experiment import Experiment
from splitjax.train.hijack_options import Hijack
from splitjax.train.language import ARCHIVES, Language

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))


def test_there_are_configs():
    assert "sft_stsb.py" in CONFIGS


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_makes_sense(name):
    experiment = flags.load(str(ROOT / "configs" / name))
    assert isinstance(experiment, Experiment | Hijack | Language)
    experiment.validate()
    if isinstance(experiment, Language):
        assert experiment.model in ARCHIVES and experiment.corpus in CORPORA
        return
    known = {*BENCHMARKS, *GLUE, *IMAGES, "digits"}
    assert set(experiment.task.split("+")) <= known


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_says_how_to_run_it(name):
    text = ast.get_docstring(ast.parse((ROOT / "configs" / name).read_text())) or ""
    [run] = [line for line in text.splitlines() if line.startswith("Run:")]
    command = run.removeprefix("Run:").split()
    assert command[:2] == ["python", "-m"]
    assert (ROOT / (command[2].replace(".", "/") + ".py")).is_file()
    assert f"--config=configs/{name}" in command
    names = vars(flags.load(str(ROOT / "configs" / name)))
    for word in command[3:]:
        if word.startswith("--config."):
            assert word[len("--config.") :].partition("=")[0] in names
