import json

import pytest
from matplotlib import image

from splitjax.storage.log import Log
from splitjax.train import report


def summary(mode="split", seed=0, metric=0.8, ratio=100.0):
    return {
        "mode": mode,
        "seed": seed,
        "metric": metric,
        "before": {"dev": 0.7, "test": 0.6},
        "scores": [{"epoch": 1, "dev": 0.5}, {"epoch": 2, "dev": metric, "test": 0.4}],
        "bytes_up": 2_500_000,
        "bytes_down": 1_000,
        "ratio": ratio,
        "edge_share": 0.25,
        "seconds": 12.4,
        "baseline_bytes": 4_000_000,
        "steps": 4,
    }


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_a_line_for_each_run_and_mode():
    runs = [
        summary(seed=0, metric=0.8),
        summary(seed=1, metric=0.9),
        summary("unsplit", ratio=None),
    ]
    head, rule, *lines = report.table(runs).splitlines()
    assert cells(head)[:3] == ["run", "before", "after"]
    assert set(rule) == {"|", "-", " "} and len({map(len, (head, rule, *lines))}) == 1
    assert cells(lines[0]) == [
        "split seed 0",
        "dev 0.7000, test 0.6000",
        "dev 0.8000, test 0.4000",
        "2.500",
        "0.001",
        "100.0x",
        "25%",
        "12",
    ]
    assert cells(lines[2])[5] == "-"
    mean = "dev 0.8500 ± 0.0707, test 0.4000 ± 0.0000"
    assert cells(lines[3])[:3] == ["split mean ± sd", "", mean]
    # One seed has no mean, and the difference is that of the seeds in both modes.
    assert cells(lines[4])[0] == "split - unsplit, points"
    assert cells(lines[4])[2] == "dev +0.00, test +0.00"
    assert len(lines) == 5


def test_differences_are_paired_by_seed():
    runs = [
        summary(mode, seed=seed, metric=metric)
        for mode, seed, metric in (
            ("split", 0, 0.80),
            ("split", 1, 0.70),
            ("unsplit", 1, 0.71),
            ("unsplit", 0, 0.83),
        )
    ]
    last = cells(report.table(runs).splitlines()[-1])
    assert last[2] == "dev -2.00 ± 1.41, test +0.00 ± 0.00"


def test_differences_of_a_score_that_falls_are_no_points():
    runs = [
        {**summary(mode, metric=metric), "lower_is_better": True}
        for mode, metric in (("split", 13.5), ("unsplit", 12.25))
    ]
    last = cells(report.table(runs).splitlines()[-1])
    assert last[0] == "split - unsplit"
    assert last[2] == "dev +1.2500, test +0.0000"


@pytest.fixture
def folder(tmp_path):
    """A function to the folder of a run with a log of some losses."""

    def make(name, losses, sent):
        made = tmp_path / name
        log = Log(made)
        for step, loss in enumerate(losses, 1):
            log.write(step, loss=loss, up=sent * step, down=sent * step)
        log.write(step, dev_score=0.5)
        log.close()
        (made / "summary.json").write_text(json.dumps(summary()))
        return made

    return make


def ink(path):
    """The shares of the left and the right half of a picture that are not white."""
    shown = (image.imread(path)[..., :3] < 0.99).any(-1)
    middle = shown.shape[1] // 2
    return shown[:, :middle].mean(), shown[:, middle:].mean()


def test_the_picture_shows_losses_and_bytes(folder, tmp_path):
    one = folder("one", [1.0, 0.5, 0.4, 0.3], 10_000)
    two = folder("two", [1.0, 2.0, 3.0, 4.0], 0)
    pictures = {}
    for name, runs in {"one": {"a": one}, "two": {"b": two}}.items():
        report.plot(runs, tmp_path / f"{name}.png")
        pictures[name] = image.imread(tmp_path / f"{name}.png")
    assert min(ink(tmp_path / "one.png")) > 0.01
    # Of the second nothing was sent: its right half has axes only.
    assert ink(tmp_path / "two.png")[1] < ink(tmp_path / "one.png")[1]
    assert (pictures["one"] != pictures["two"]).mean() > 1e-3


def test_versions_are_those_that_ran():
    import jax

    found = report.versions()
    assert found["jax"] == jax.__version__ and found["device"].startswith("cpu")
    assert found["commit"]


def test_versions_without_git(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(report.subprocess, "run", missing)
    assert report.versions()["commit"] == "unknown"


def test_mean_and_deviation():
    assert report.mean_and_deviation([2.0]) == (2.0, 0.0)
    assert report.mean_and_deviation([1.0, 2.0, 3.0]) == (2.0, 1.0)
