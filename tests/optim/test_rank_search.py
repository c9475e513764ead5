import jax
import numpy as np
import pytest

from splitjax.optim.rank_search import rank_search
from splitjax.optim.ranks import at_ratio


def test_it_beats_chance_with_as_many_trials(key):
    names = ["a", "b", "c"]
    aim = np.array([0.2, 0.7, 0.5])

    def objective(ratios):
        return float(np.square(np.array([ratios[n] for n in names]) - aim).sum())

    ours = rank_search(objective, names, key=key, calls=15)
    blind = rank_search(objective, names, key=key, calls=15, first=15)
    assert ours.value < 0.5 * blind.value
    assert ours.tried[:5] == blind.tried[:5]
    assert ours.value == min(value for _, value in ours.tried)
    assert all(0 <= r <= 0.9 for point, _ in ours.tried for r in point.values())
    assert rank_search(objective, names, key=key, calls=7).tried == ours.tried[:7]


def test_it_keeps_the_ranks_of_the_layer_that_needs_them(key):
    """One leaf has full energy, another a fading one: error and size are weighed."""
    shape = jax.ShapeDtypeStruct((32, 16), np.float32)
    params = {"flat": shape, "fading": shape}
    squares = {"flat": np.ones(16), "fading": 0.25 ** np.arange(16.0)}

    def objective(ratios):
        plan = at_ratio("flat|fading", ratios, floor=1)(params)
        lost = [1 - s[: plan[n].rank].sum() / s.sum() for n, s in squares.items()]
        return sum(lost) + 0.5 * sum(rule.rank for rule in plan.values()) / 16

    found = rank_search(objective, ["flat", "fading"], key=key, calls=9)
    assert found.ratios["fading"] > found.ratios["flat"]


def test_a_trial_that_fails_counts_as_the_worst(key):
    calls = iter([float("nan"), 3.0, 2.0, float("inf")] + 4 * [2.5])
    found = rank_search(lambda ratios: next(calls), ["a"], key=key, calls=8, first=3)
    assert found.value == 2.0
    with pytest.raises(ValueError, match="not finite in any"):
        rank_search(lambda ratios: float("nan"), ["a"], key=key, calls=2, first=2)


@pytest.mark.parametrize(
    "wrong",
    [dict(names=[]), dict(low=0.9, high=0.5), dict(high=1.0), dict(calls=3, first=4)],
    ids=str,
)
def test_what_makes_no_sense(wrong, key):
    options = {"names": ["a"], "key": key, **wrong}
    with pytest.raises(ValueError, match="rank_search"):
        rank_search(lambda ratios: 0.0, **options)
