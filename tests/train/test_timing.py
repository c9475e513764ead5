import json
import os

import jax
import pytest

from splitjax.train import timing


@pytest.fixture
def parts(monkeypatch):
    """Two parts that note what they were timed with; this process keeps its cores."""
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)

    def part(name):
        def run(timed):
            times = timed({"step": lambda: 1, name: lambda: 2})
            return timing.rows(times, "step", {})

        return run

    return {"kernels/one": part("one"), "factors/two": part("two")}


def test_chosen_parts_are_timed_and_written(parts, tmp_path, monkeypatch, capsys):
    ticks = iter(range(100))
    monkeypatch.setitem(timing.CLOCKS, "cpu", lambda: float(next(ticks)))
    path = tmp_path / "bench" / "found.json"
    timing.main(parts, path, rounds=3, only="^fac", clock="cpu")
    made = json.loads(path.read_text())["rows"]
    assert [(row["name"], row["value"]) for row in made] == [("step", 1), ("two", 1)]
    assert next(ticks) == 2 * 2 * 3  # looked at before and after each of 3 rounds
    assert "| two" in capsys.readouterr().out
    timing.main(parts, path, rounds=1, only="", clock="wall")
    names = [row["name"] for row in json.loads(path.read_text())["rows"]]
    assert names == ["step", "one", "step", "two"]


def test_a_part_that_is_not_there_is_told(parts, tmp_path):
    with pytest.raises(SystemExit, match="--only=three: .*: kernels/one, factors/two"):
        path = tmp_path / "found.json"
        timing.main(parts, path, rounds=1, only="three", clock="wall")
    assert not any(tmp_path.iterdir())
