import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from splitjax.metrics import score


@pytest.fixture
def values():
    random = np.random.default_rng(0)
    wanted = random.integers(0, 6, 50).astype(np.float32)  # with ties, as labels have
    return wanted + random.normal(size=50).astype(np.float32), wanted


@pytest.fixture
def classes():
    random = np.random.default_rng(0)
    return random.normal(size=(50, 2)).astype(np.float32), random.integers(0, 2, 50)


def test_correlations_are_those_of_scipy(values):
    assert score.spearman(*values) == pytest.approx(stats.spearmanr(*values)[0])
    assert score.pearson(*values) == pytest.approx(stats.pearsonr(*values)[0], abs=1e-6)
    assert 0.5 < score.pearson(*values) < 1


def test_ranks_see_no_monotone_change(values):
    predicted, wanted = values
    assert score.spearman(np.exp(predicted), wanted) == score.spearman(*values)
    assert score.pearson(np.exp(predicted), wanted) < 0.9 * score.pearson(*values)


@pytest.mark.parametrize("name", ["spearman", "pearson"])
def test_what_is_constant_correlates_with_nothing(name):
    constant, other = np.ones(4), np.arange(4.0)
    one = getattr(score, name)
    assert one(constant, other) == one(other, constant) == 0.0


def test_classes_are_scored_by_the_largest_logit(classes):
    logits, wanted = classes
    chosen = (logits[:, 1] > logits[:, 0]).astype(int)
    assert score.accuracy(*classes) == np.mean(chosen == wanted)
    assert score.f1(*classes) == metrics.f1_score(wanted, chosen)
    assert score.matthews(*classes) == metrics.matthews_corrcoef(wanted, chosen)


def test_hand_numbers():
    logits = np.eye(2)[[1, 1, 1, 0, 0]]  # true positives 2, false 1, negatives 1, 1
    wanted = np.array([1, 1, 0, 1, 0])
    assert score.accuracy(logits, wanted) == pytest.approx(3 / 5)
    assert score.f1(logits, wanted) == pytest.approx(2 / 3)
    assert score.matthews(logits, wanted) == pytest.approx((2 * 1 - 1 * 1) / 6)
