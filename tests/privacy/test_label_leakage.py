import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from splitjax.privacy import (
    direction_attack,
    label_leakage,
    leak_auc,
    norm_attack,
    spectral_attack,
)


def last_layer(p_positive=0.1, rows=400, seed=0):
    """Gradients of a logistic head at the cut: (p - y) w for each example."""
    rng = np.random.default_rng(seed)
    y = rng.random(rows) < p_positive
    p = 1 / (1 + np.exp(-rng.normal(np.log(p_positive / (1 - p_positive)), 0.5, rows)))
    return (p - y)[:, None] * rng.normal(size=8)[None], y


def test_leak_auc_is_scikit_learns_with_ties():
    rng = np.random.default_rng(0)
    score, y = rng.integers(0, 5, 200), rng.random(200) < 0.3
    np.testing.assert_allclose(leak_auc(score, y), roc_auc_score(y, score))
    assert leak_auc(-score, y, signed=False) == max(
        leak_auc(score, y), leak_auc(-score, y)
    )


def test_rare_labels_have_large_gradients_and_one_hint_tells_all():
    g, y = last_layer()
    assert leak_auc(norm_attack(g), y) > 0.95
    hint = g[np.flatnonzero(y)[0]]
    assert leak_auc(direction_attack(g, hint), y) == 1.0
    assert leak_auc(spectral_attack(g), y, signed=False) > 0.99


def test_gradients_without_labels_tell_nothing():
    rng = np.random.default_rng(1)
    y = rng.random(2000) < 0.5
    found = label_leakage(rng.normal(size=(2000, 16)), y.astype(int))
    assert abs(found["label_norm_auc"] - 0.5) < 0.05
    assert abs(found["label_direction_auc"] - 0.5) < 0.05
    assert abs(found["label_accuracy"] - found["label_chance"]) < 0.06


def test_many_classes():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 5, 300)
    softmax = np.full((300, 5), 0.2) - np.eye(5)[y]
    g = softmax @ rng.normal(size=(5, 24)) + 0.05 * rng.normal(size=(300, 24))
    found = label_leakage(g, y)
    assert found["label_direction_auc"] > 0.99 and found["label_accuracy"] > 0.95
    assert found["label_chance"] < 0.3


def test_noise_on_the_gradient_lowers_it():
    g, y = last_layer(0.3)
    rng = np.random.default_rng(3)
    found = [
        label_leakage(g + scale * rng.normal(size=g.shape), y.astype(int))
        for scale in (0.0, 2.0, 50.0)
    ]
    values = [one["label_direction_auc"] for one in found]
    assert values[0] == 1.0 and values[0] > values[1] > values[2]


def test_zero_gradients_and_missing_classes():
    assert direction_attack(np.zeros((2, 3)), np.ones(3)).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="needs 2 classes"):
        label_leakage(np.ones((4, 2)), np.zeros(4, int))
    with pytest.raises(ValueError, match="3 positive and 0 other"):
        leak_auc(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="not finite"):
        leak_auc(np.array([np.nan, 1.0]), np.array([True, False]))
