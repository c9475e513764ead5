"""Optimizers beside each other, tuned alike."""

import json
import math
import pathlib
import subprocess
import sys

import pytest

from splitjax.storage.log import Log
from splitjax.studies.optimizers import race, report
from splitjax.train.classify import Classify
from splitjax.train.experiment import Experiment

TINY = dict(
    task="digits", model="cnn", after=("block1",), batch_size=8, limit=16, pad=0
)
CONFIG = f"""
from splitjax.train.classify import Classify

ARMS = (
    "optimizer=sgd learning_rate=1e-2,1e-6",
    "optimizer=adamw learning_rate=1e-6,1e-3",
)


def get_config():
    return Classify(**{TINY!r}, hold_out=40, eval_limit=40, epochs=2, flip=False)
"""


def row(name, curve, **more):
    chosen, other = ({"optimizer": name, "rate": rate} for rate in (1, 2))
    whole = dict(name=name, chosen=chosen, tried=[chosen, other], border=False)
    given = dict(each=[curve[-1][1]], unit="dev accuracy", lower_is_better=False)
    return {**whole, **given, "value": curve[-1][1], "deviation": 0.0, **more} | {
        "curve": curve
    }


def test_the_target_is_what_all_of_them_reach():
    rows = [
        row("slow", [(10, 0.2), (20, 0.5), (30, 0.8)]),
        row("fast", [(10, 0.7), (20, 0.9), (30, 0.95)]),
    ]
    times = {"slow": [1.0, 2.0, 3.0], "fast": [2.0, 5.0, 6.0]}
    slow, fast = report.compared(rows, times)
    assert slow["target"] == fast["target"] == 0.8
    assert (slow["steps_to"], fast["steps_to"]) == (30, 20)
    assert (slow["ratio"], fast["ratio"], fast["seconds"]) == (1.0, 2.0, 5.0)
    assert fast["seconds_to"] == 100.0
    shown = report.table([slow, fast])
    assert "steps to 0.8000" in shown and "rate=1" in shown


def test_of_a_score_that_falls_the_target_is_the_highest():
    rows = [
        row("a", [(1, 9.0), (2, 5.0)], lower_is_better=True),
        row("b", [(1, 4.0), (2, 3.0)], lower_is_better=True),
    ]
    one, other = report.compared(rows, {"a": [1.0], "b": [1.0]})
    assert one["target"] == 5.0
    assert (one["steps_to"], other["steps_to"]) == (2, 1)


def test_a_table_tells_what_was_chosen_among_several_values():
    """Also where the name of that option is a part of another's."""
    points = [{"kfac_clip": 1, "clip": clip, "flip": True} for clip in (1.0, 2.0)]
    one = row("kfac_clip=1,flip=True", [(1, 0.5)], chosen=points[1], tried=points)
    other = row("plain", [(1, 0.5)])
    times = {one["name"]: [1.0], "plain": [1.0]}
    line = report.table(report.compared([one, other], times)).splitlines()[2]
    assert line.split("|")[2].strip() == "clip=2.0"


def test_a_point_that_diverges_is_the_worst_and_ends_no_race(tmp_path, monkeypatch):
    """Of a score that falls as a model improves, too."""

    def train(experiment, seed, folder):
        rate = experiment.learning_rate
        if rate > 1:
            raise FloatingPointError("the loss is nan at step 1")
        log = Log(folder)
        log.write(4, test_score=rate)
        log.close()
        metric = math.nan if rate == 1 else rate
        return {"metric": metric, "metric_name": "test loss", "lower_is_better": True}

    monkeypatch.setattr(race, "train", train)
    arms = {
        "sgd": [{"learning_rate": rate} for rate in (9.0, 1.0, 0.5, 0.1, 0.0)],
        "flips": [{"flip": flip, "hold_out": 9} for flip in (True, False)],
    }
    run = Classify(**TINY, hold_out=40, learning_rate=0.25)
    sgd, flips = race.race(run, arms, tmp_path)
    assert sgd["chosen"] == {"learning_rate": 0.0} and sgd["border"]
    assert [t["metric"] for t in sgd["tried"]] == [None, None, 0.5, 0.1, 0.0]
    assert sgd["curve"] == [(4, 0.0)] and flips["value"] == 0.25
    assert not flips["border"]
    with pytest.raises(FloatingPointError, match="sgd: no loss or score is finite"):
        race.race(run, {"sgd": [{"learning_rate": 2.0}]}, tmp_path)


def test_a_window_has_an_inversion_of_every_arm():
    run = Classify(**TINY, kfac_inverse_every=3)
    arms = {"a": {}, "b": {"kfac_inverse_every": 10}}
    assert race.window_of(run, arms) == 10


@pytest.mark.slow
def test_the_main_chooses_on_what_is_held_out_and_judges_on_the_rest(tmp_path):
    """And started again it makes no run a second time."""
    (tmp_path / "mine.py").write_text(CONFIG)
    root = pathlib.Path(__file__).parents[2]
    command = ["-m", "experiments.optimizers", f"--config={tmp_path / 'mine.py'}"]
    command += ["--workdir", str(tmp_path / "w"), "--window=2", "--rounds=1"]
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, *command],
            check=False,
            capture_output=True,
            text=True,
            cwd=root,
        )
        assert done.returncode == 0, done.stderr
        rows = json.loads((tmp_path / "w" / "optimizers.json").read_text())
        assert [r["name"] for r in rows] == ["optimizer=sgd", "optimizer=adamw"]
        for r in rows:
            best = max(tried["metric"] for tried in r["tried"])
            [chosen] = [t for t in r["tried"] if t["metric"] == best][:1]
            assert chosen["learning_rate"] == r["chosen"]["learning_rate"]
            assert r["tried_on"] == "dev accuracy" and r["unit"] == "test accuracy"
            assert r["border"] and [step for step, _ in r["curve"]] == [2, 4]
            assert r["value"] == r["curve"][-1][1] and r["seconds"] > 0
    assert "a step" in done.stdout
    assert (tmp_path / "w" / "optimizers.png").stat().st_size > 10_000
    assert len(list((tmp_path / "w").glob("*/seed_0/summary.json"))) == 4 + 2


@pytest.mark.parametrize(
    ("grids", "says"),
    [
        (["epochs=1 task=a"], "two arms or more"),
        (["epochs=1,2 task=a", "epochs=1 task=b"], "as many points.*'task=a': 2"),
        (["epochs=1,2", "task=a epochs=1,2"], "and '' is no name"),
        (["task=a epochs=1,2", "task=a epochs=3,4"], "'task=a' is taken"),
    ],
)
def test_g_arms_that_are_no_fair_race(grids, says):
    with pytest.raises(ValueError, match=says):
        race.arms(grids, Experiment())


def test_g_rates_are_not_chosen_on_the_pictures_that_judge(tmp_path):
    with pytest.raises(ValueError, match="hold_out=0: rates would be chosen on"):
        race.race(Classify(**TINY), {}, tmp_path)
