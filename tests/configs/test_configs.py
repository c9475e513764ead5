import ast
import dataclasses
import pathlib

import pytest

from splitjax.data.benchmarks import BENCHMARKS, GLUE
from splitjax.data.images import IMAGES
from splitjax.data.stream import CORPORA
from splitjax.studies import frontier
from splitjax.studies.fsha.options import Hijack
from splitjax.studies.optimizers import race
from splitjax.studies.plan.options import Planning
from splitjax.studies.residuals.residuals import Residuals
from splitjax.train import flags
from splitjax.train.experiment import Experiment
from splitjax.train.language import ARCHIVES, Language
from splitjax.train.next_token import NextToken

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))


def test_there_are_configs():
    assert "sft_stsb.py" in CONFIGS


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_makes_sense(name):
    experiment = flags.load(str(ROOT / "configs" / name))
    kinds = Experiment | Hijack | Language | Planning | Residuals
    assert isinstance(experiment, kinds)
    experiment.validate()
    if isinstance(experiment, Planning):
        assert experiment.model in ARCHIVES or pathlib.Path(experiment.model).is_file()
        return
    is_scored = isinstance(experiment, Language)
    if is_scored or isinstance(experiment, NextToken):
        text = experiment.corpus if is_scored else experiment.task
        assert experiment.model in ARCHIVES and text in CORPORA
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


def having(name: str) -> list[str]:
    """The configs that propose something under a name."""
    files = sorted((ROOT / "configs").glob("*.py"))
    return [path.name for path in files if f"\n{name} = " in path.read_text()]


@pytest.mark.parametrize("name", having("GRID"))
def test_every_point_of_a_sweep_makes_sense(name):
    path = str(ROOT / "configs" / name)
    experiment = flags.load(path)
    points = frontier.points(flags.proposed(path, "GRID"), experiment)
    assert len(points) > 1
    for point in points:
        dataclasses.replace(experiment, **point).validate()
        assert len(frontier.name_of(point)) < 200  # the name of a folder
    assert len({frontier.name_of(point) for point in points}) == len(points)


@pytest.mark.parametrize("name", having("ARMS"))
def test_every_point_of_an_arm_makes_sense(name):
    path = str(ROOT / "configs" / name)
    experiment = flags.load(path)
    arms = race.arms(flags.proposed(path, "ARMS"), experiment)
    for point in (point for points in arms.values() for point in points):
        dataclasses.replace(experiment, **point).validate()


def test_a_config_without_a_sweep_says_so():
    with pytest.raises(SystemExit, match="no GRID.*--grid="):
        flags.proposed(str(ROOT / "configs" / "sft_cola.py"), "GRID")
