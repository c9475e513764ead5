"""The mains as a user calls them, each in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from matplotlib import image

from splitjax.storage.lock import exclusive

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
from splitjax.train.finetune import Finetune


def get_config():
    return Finetune(
        task={task!r}, model={model!r}, fit_text=({task!r},), layer=1, rank=4,
        batch_size=8, max_length=8, epochs=1, forward_bits=8,
    )
"""


@pytest.fixture(scope="module")
def run(tiny_model, tiny_task, tmp_path_factory):
    """A function that calls a main with the tiny config, in a folder of its own."""
    folder = tmp_path_factory.mktemp("mains")
    text = CONFIG.format(task=str(tiny_task), model=str(tiny_model))
    (folder / "mine.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def call(name, *arguments, config="mine.py"):
        command = [sys.executable, "-m", f"experiments.{name}"]
        command += [f"--config={config}"] if config else []
        kwargs = dict(cwd=folder, env=environment, capture_output=True, text=True)
        return subprocess.run([*command, *arguments], check=False, **kwargs)

    call.folder = folder
    return call


@pytest.fixture(scope="module")
def trained(run):
    """What finetune prints, with its run in runs/mine."""
    return run("finetune")


def test_finetune_writes_its_report(trained, run):
    assert trained.returncode == 0, trained.stderr
    work = run.folder / "runs" / "mine"
    [summary] = json.loads((work / "summary.json").read_text())
    assert summary["steps"] == 3 and summary["mode"] == "split"
    alone = work / "split_seed_0"
    assert json.loads((alone / "summary.json").read_text()) == summary
    assert (work / "table.md").read_text() in trained.stdout
    assert f"dev {summary['metric']:.4f}" in trained.stdout
    assert image.imread(work / "curves.png").std() > 0.01
    assert "Traceback" not in trained.stderr and "orbax" not in trained.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [("finetune", "--config.compare=True"), ("frontier", "--grid=rank=4")],
)
def test_the_unsplit_run_beside_one_on_a_mesh_has_none(name, more, run):
    """A mesh is the cloud's, and a run without a cut is refused with one."""
    few = ["--config.mesh=data=1", "--config.steps=1", "--config.fit_steps=0"]
    done = run(name, *few, more, f"--workdir=runs/{name}_on_a_mesh")
    assert done.returncode == 0, done.stderr
    made = (run.folder / "runs" / f"{name}_on_a_mesh").glob("**/*seed_0/summary.json")
    modes = sorted(json.loads(path.read_text())["mode"] for path in made)
    assert modes == ["split", "unsplit"]


def test_evaluate_scores_the_run_again(trained, run):
    done = run("evaluate")
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    [summary] = json.loads((run.folder / "runs/mine/summary.json").read_text())
    assert line["seed"] == 0 and line["step"] == 3
    assert line["dev"] == summary["metric"]
    # Of this evaluation alone: the run scored twice.
    before = [row for row in summary["bytes"] if row["kind"] == "predict"]
    assert {row["direction"]: row["bytes"] / 2 for row in before} == {
        "up": line["bytes_up"],
        "down": line["bytes_down"],
    }


@pytest.mark.parametrize("arguments", [["evaluate"], ["predict", "--texts=mine.py"]])
def test_a_run_in_use_is_told(arguments, trained, run):
    with exclusive(run.folder / "runs" / "mine" / "split_seed_0"):
        done = run(*arguments)
    assert done.returncode != 0 and done.stdout == ""
    assert "in use by process" in done.stderr.splitlines()[-1]


def test_predict_answers_each_text(trained, run):
    texts = ["red dog", "blue cat tree", "", "white sky fish"]
    (run.folder / "texts.txt").write_text("\n".join(texts) + "\n")
    done = run("predict", "--texts=texts.txt")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["text"] for line in lines] == [text for text in texts if text]
    assert all(len(line["prediction"]) == 2 for line in lines)
    assert len({tuple(line["prediction"]) for line in lines}) == 3


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("finetune", ["--config.rnak=4"], "did you mean 'rank'"),
        ("evaluate", ["--workdir=gone"], "no such folder: train first"),
        (
            "finetune",
            ["--config.task=gone.csv", "--workdir=new"],
            "DataError: there is no file gone.csv",
        ),
    ],
)
def test_a_wrong_wish_is_told(name, arguments, message, run):
    done = run(name, *arguments)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert message in done.stderr.splitlines()[-1]


def test_a_missing_config_is_told(run):
    done = run("finetune", config="mime.py")
    assert done.returncode != 0
    assert done.stderr == (
        "--config=mime.py: no such file; did you mean 'mine.py'? There are: mine.py\n"
    )


@pytest.mark.slow
def test_bench_split_measures_every_part(run):
    """With a row for each number; what they are is for a machine at rest."""
    few = ["--rounds=1", "--slow_rounds=1", "--layers=0", "--workdir=bench"]
    done = run("bench_split", *few)
    assert done.returncode == 0, done.stderr
    rows = json.loads((run.folder / "bench/bench_split.json").read_text())["rows"]
    fields = {"name", "value", "unit", "reference", "ratio", "bound"}
    assert all(set(row) == fields and row["ratio"] > 0 for row in rows)
    names = [row["name"] for row in rows]
    assert all(name in done.stdout for name in names)
    for part in (
        "float32, frames",
        "float32, two processes",
        "this config, two processes, one core each",
        "cut 0, float32, 10Mbit,20ms, 4 in flight",
        "cut 0, this config, edge trained, 100Mbit,20ms, 1 in flight",
        "this config, process to first step, not compiling",
        "float32, edge process, peak memory",
    ):
        assert part in names


@pytest.mark.slow
def test_plan_prints_its_stages_and_draws_them(run):
    """Of an experiment's model, on two virtual devices."""
    (run.folder / "planned.py").write_text(
        "from splitjax.studies.plan.options import Planning\n\n\ndef get_config():\n"
        "    how = dict(devices=2, mesh='pipe=2', micro=2, rounds=1)\n"
        "    return Planning(model='mine.py', **how)\n"
    )
    done = run("plan", config="planned.py")
    assert done.returncode == 0, done.stderr
    folder = run.folder / "runs" / "planned"
    assert (folder / "plan.md").read_text() in done.stdout
    stages = json.loads((folder / "plan.json").read_text())["planned"]["stages"]
    assert [row["first"] for row in stages][0] == "embed"
    assert all(row["measured_seconds"] > 0 for row in stages)
    assert image.imread(folder / "plan.png").std() > 0.01


@pytest.mark.slow
def test_bench_cloud_measures_a_part(run):
    """And a pipeline after it, which is given devices of its own."""
    given = ["--only=adam|perceptron", "--rounds=1", "--clock=cpu", "--workdir=bench"]
    done = run("bench_cloud", *given, config=None)
    assert done.returncode == 0, done.stderr
    rows = json.loads((run.folder / "bench/bench_cloud.json").read_text())["rows"]
    assert all(row["name"] in done.stdout for row in rows)
    names = {row["name"] for row in rows}
    assert {"Adam, stock", "gpipe, n=4: spmd, a step"} <= names


@pytest.mark.slow
def test_residuals_compares_its_arms(run):
    (run.folder / "kept.py").write_text(
        "from splitjax.studies.residuals.residuals import Residuals\n\n\n"
        "def get_config():\n"
        "    how = dict(widths=(4,), steps=2, limit=64, batch_size=32, seeds=(0,))\n"
        "    return Residuals(arms=('exact', '8 bits'), **how)\n"
    )
    done = run("residuals", config="kept.py")
    assert done.returncode == 0, done.stderr
    folder = run.folder / "runs" / "kept"
    rows = json.loads((folder / "residuals.json").read_text())
    assert [row["name"] for row in rows] == ["exact", "8 bits"]
    assert all(row["runs"][0]["loss"] > 0 for row in rows)
    assert (folder / "table.md").read_text() in done.stdout
