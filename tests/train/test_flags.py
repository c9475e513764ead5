import dataclasses

import pytest

from splitjax.train import flags
from splitjax.train.finetune import Finetune

CONFIG = """
from splitjax.train.finetune import Finetune


def get_config():
    return Finetune(task="mine.csv", rank=12)
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG)
    return str(path)


def check(*arguments, default):
    flags._check_arguments(["main", *arguments], default)


@pytest.mark.parametrize(
    ("argument", "near"),
    [
        ("--config.rnak=4", "rank"),
        ("--config.batchsize=4", "batch_size"),
        ("--config.forward_bit", "forward_bits"),
        ("--config.seed[0]=4", "seeds"),
    ],
)
def test_a_typo_names_the_nearest_field(argument, near, path):
    with pytest.raises(SystemExit, match=f"no such option; did you mean '{near}'"):
        check(argument, default=path)


def test_fields_that_are_there_pass(path):
    check("--config.rank=4", "--config.seeds=(1,2)", "--workdir=x", default=path)
    check("--config.compare", "--config", path, default="gone.py")
    check("something else", default=path)


@pytest.mark.parametrize("form", [("--config={}",), ("--config", "{}")])
def test_a_missing_config_names_its_neighbors(form, path, tmp_path):
    given = [part.format(tmp_path / "mime.py") for part in form]
    for more in ([], ["--config.rank=4"], ["--help"]):
        with pytest.raises(SystemExit, match=r"mime.py: no such file; .*mine.py'"):
            check(*given, *more, default=path)


def test_a_file_without_get_config_is_told(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(SystemExit, match="empty.py: .*get_config"):
        flags.load(str(tmp_path / "empty.py"))


def test_a_sweep_that_is_one_text_is_told(tmp_path):
    path = tmp_path / "grid.py"
    path.write_text("GRID = 'rank=1,2'\n")
    with pytest.raises(SystemExit, match=r"must be a tuple.*GRID = \('rank=1,2',\)"):
        flags.proposed(str(path), "GRID")
    path.write_text("GRID = ('rank=1,2',)\n")
    assert flags.proposed(str(path), "GRID") == ("rank=1,2",)


def test_help_has_every_field_with_its_value_and_meaning(path, capsys):
    check("--help", default=path)
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines()[1:]}
    experiment = flags.load(path)
    assert isinstance(experiment, Finetune) and experiment.rank == 12
    for field in dataclasses.fields(Finetune):
        line = lines.pop(f"--config.{field.name}")
        assert field.metadata["meaning"] and line.endswith(field.metadata["meaning"])
        assert repr(getattr(experiment, field.name)) in line
    assert not lines
