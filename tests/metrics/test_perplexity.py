import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.metrics.perplexity import bits, nats, next_symbol, perplexity, row_nats


@pytest.fixture
def case(key):
    """Logits (3, 4, 5), symbols with gaps, and log-probabilities in float64."""
    y = jax.random.normal(key, (3, 4, 5))
    following = np.array([[1, 0, 4, 2], [3, 3, -1, -1], [2, -1, -1, -1]])
    wide = np.asarray(y, np.float64)
    logs = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logs, np.maximum(following, 0)[..., None], -1)[..., 0]
    return y, jnp.asarray(following), np.where(following >= 0, -chosen, 0)


def test_nats_are_summed_where_a_symbol_follows(case):
    y, following, losses = case
    total, count = nats(y, following)
    assert float(total) == pytest.approx(losses.sum(), rel=1e-6) and int(count) == 7
    assert perplexity(float(total), 7) == pytest.approx(np.exp(losses.sum() / 7))
    assert bits(float(total), 7) == pytest.approx(losses.sum() / 7 / np.log(2))
    assert int(nats(y.astype(jnp.bfloat16), following)[1]) == 7
    rows, counts = row_nats(y, following)
    np.testing.assert_allclose(rows, losses.sum(1), rtol=1e-6)
    assert counts.tolist() == [4, 2, 1]


def test_the_loss_is_the_mean_of_the_rows_and_reaches_no_gap(case):
    y, following, losses = case
    target = {"y": following, "n_valid": jnp.int32(2)}
    loss, extra = next_symbol(y, target)
    wanted = (losses[0].mean() + losses[1, :2].mean()) / 2
    assert float(loss) == pytest.approx(wanted, rel=1e-6)
    hits = np.asarray(y.argmax(-1) == following)
    share = (hits[0].mean() + hits[1, :2].mean()) / 2
    assert float(extra["accuracy"]) == pytest.approx(share)
    grad = np.asarray(jax.grad(lambda y: next_symbol(y, target)[0])(y))
    assert np.abs(grad).max(-1).astype(bool).tolist() == [
        [True] * 4,
        [True, True, False, False],
        [False] * 4,
    ]


def test_nothing_predicted_is_refused():
    with pytest.raises(ValueError, match="a perplexity of 0 symbols"):
        perplexity(0.0, 0)
