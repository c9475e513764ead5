import itertools

import pytest

from splitjax.bench import plan
from splitjax.models.decoder_config import DecoderConfig
from splitjax.parallel.machine import Machine
from splitjax.train.timing import Watch


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    model = DecoderConfig(
        vocab=512, width=8, heads=2, kv_heads=2, layers=2, ffn=8, tied=False
    )
    sizes = plan.Sizes(2, 3, 2, 4, model, 4, (4, 4, 4, 4, 16, 16))
    monkeypatch.setattr(plan, "SIZES", sizes)
    for name in ("matrix_rate", "stream_rate"):
        monkeypatch.setattr(plan, name, lambda clock: 1e9)


def test_a_plan_foretells_a_shorter_step_than_the_even_cut():
    """Five narrow layers are not as dear as one of width 16."""
    about = plan.wide_middle()
    both = plan.planned(about, Machine(1e9))
    assert both["even"].cuts == (3,) and both["planned"].cuts == (5,)
    assert both["planned"].seconds < both["even"].seconds


@pytest.mark.parametrize(
    "name", [pytest.param("wide head", marks=pytest.mark.slow), "wide middle"]
)
def test_rows_have_both_cuts_foretold_and_measured(name):
    """By a clock on which each operation takes 1: as long for both cuts."""
    ticks = itertools.count()
    part = plan.PARTS[f"pipeline/plan, {name}"]
    made = part(Watch(1, lambda: next(ticks)))
    assert len({row["name"] for row in made}) == len(made) == 6
    foretold, _, measured, again, *steps = made
    assert all(" even after " in row["reference"] for row in made)
    assert 0 < foretold["ratio"] < 1
    assert measured["value"] == again["value"] == 2 * (3 + 2 - 1)
    assert measured["ratio"] == 1 and [row["value"] for row in steps] == [1, 1]
