import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from splitjax.core.tree import flat
from splitjax.models.batch_norm import BatchNorm
from splitjax.optim.norms import recalibrate


class Two(nn.Module):
    """Two norms of unlike momentum, ours and Flax's."""

    @nn.compact
    def __call__(self, x, *, train):
        h = BatchNorm(momentum=0.7, name="ours")(x["h"], x["mask"], train=train)
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.99, name="theirs")
        return norm(nn.Dense(2, name="dense")(h))


@pytest.fixture
def case(key):
    """The module, its variables, two batches, the second one with a row of padding."""
    draw = np.random.default_rng(0)
    h = 100 + 3 * draw.normal(size=(2, 4, 3)).astype(np.float32)
    masks = np.array([[True] * 4, [True, True, True, False]])
    batches = [
        ({"h": jnp.asarray(a), "mask": jnp.asarray(mask)}, int(mask.sum()))
        for a, mask in zip(h, masks, strict=True)
    ]
    made = Two().init(key, batches[0][0], train=False)
    return made, batches


def renew_of(made):
    def renew(state, x):
        variables = {"params": made["params"], **state}
        return Two().apply(variables, x, train=True, mutable="batch_stats")[1]

    return renew


def test_statistics_are_those_of_the_batches_by_their_examples(case):
    made, batches = case
    old = {"batch_stats": made["batch_stats"]}
    found = flat(recalibrate(renew_of(made), old, batches))
    rows = [np.asarray(x["h"])[np.asarray(x["mask"])] for x, _ in batches]
    sizes = [len(a) for a in rows]
    mean = np.average([a.mean(0) for a in rows], axis=0, weights=sizes)
    var = np.average([a.var(0) for a in rows], axis=0, weights=sizes)
    np.testing.assert_allclose(found["batch_stats/ours/mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(found["batch_stats/ours/var"], var, rtol=1e-4)
    # The second norm sees what the first one makes in training.
    theirs = []
    for x, _ in batches:
        h = BatchNorm(momentum=0.7).apply(
            {
                "params": made["params"]["ours"],
                "batch_stats": made["batch_stats"]["ours"],
            },
            x["h"],
            x["mask"],
            train=True,
            mutable="batch_stats",
        )[0]
        dense = made["params"]["dense"]
        theirs.append(np.asarray(h @ dense["kernel"] + dense["bias"][None]).mean(0))
    want = np.average(theirs, axis=0, weights=sizes)
    np.testing.assert_allclose(found["batch_stats/theirs/mean"], want, atol=1e-5)


def test_what_is_no_statistic_stays(case):
    made, batches = case
    other = jnp.arange(3)

    def renew(state, x):
        new = renew_of(made)({"batch_stats": state["batch_stats"]}, x)
        return {**new, "count": state["count"] + 1}

    state = {"batch_stats": made["batch_stats"], "count": other}
    assert recalibrate(renew, state, batches)["count"] is other


def test_bad_wishes_are_told(case):
    made, batches = case
    state = {"batch_stats": made["batch_stats"]}
    with pytest.raises(ValueError, match="no example to measure"):
        recalibrate(renew_of(made), state, [(batches[0][0], 0)])
    with pytest.raises(ValueError, match="train=True"):
        recalibrate(lambda state, x: state, state, batches)
    with pytest.raises(ValueError, match="matches no leaf"):
        recalibrate(renew_of(made), {"count": jnp.ones(2)}, batches)
