"""Training at a low rank, from an experiment's options to its steps."""

import contextlib

import jax
import numpy as np
import pytest

from splitjax.core.matrix import Rule, as_matrix
from splitjax.core.tree import path_name
from splitjax.train.classify import Classify
from splitjax.train.loop import tick_batch
from splitjax.train.runs import open_run

TINY = dict(
    task="digits",
    model="cnn_norm",
    after=("block1",),
    batch_size=8,
    limit=17,
    eval_limit=12,
    epochs=1,
    pad=1,
    learning_rate=1e-2,
    optimizer="sgd",
    low_rank=0.75,
    low_rank_every=2,
)


RANKS = {"0/block1/0/conv/kernel": 9, "1/block2/0/conv/kernel": 16}


def numeric_rank(kernel):
    values = np.linalg.svd(as_matrix(kernel, "conv"), compute_uv=False)
    return int((values > 1e-4 * values[0]).sum())


def ranks(state):
    kernels = {
        path_name(path): leaf
        for held in (state.edge, state.slot)
        for path, leaf in jax.tree_util.tree_leaves_with_path(held["params"])
        if leaf.ndim == 4
    }
    return {name: numeric_rank(kernel) for name, kernel in kernels.items()}


@pytest.mark.parametrize(("after", "owner"), [("block1", "1"), ("block2", "0")])
def test_both_parties_project_with_the_statistics_of_their_norms(
    after, owner, tmp_path
):
    """The first convolution sees gray pictures, which have no rank to give away."""
    given = {**TINY, "low_rank_every": 1, "after": (after,)}
    run = open_run(Classify(**given), 0, tmp_path)
    batches = next(iter(run.parts.train.epoch(0, micro=1)))
    ticks = [tick_batch(batch, 8) for batch in batches]
    before = ranks(run.state)
    with contextlib.closing(run.driver):
        state, _ = run.driver.step(run.state, ticks, in_flight=1, names=["first"])
    first, second = "0/block1/0/conv/kernel", f"{owner}/block2/0/conv/kernel"
    assert before == {first: 9, second: 64}
    assert ranks(state) == {first: 9, second: 16}


def test_the_plan_names_norms_where_there_are_some():
    specs = {
        "stem": {
            "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 3, 16), np.float32)},
            "norm": {"scale": jax.ShapeDtypeStruct((16,), np.float32)},
        },
        "layer1/0": {
            "skip_conv": {"kernel": jax.ShapeDtypeStruct((1, 1, 16, 32), np.float32)}
        },
    }
    plan = Classify(**TINY).plan(specs)
    assert plan == {
        "stem/conv/kernel": Rule(4, "conv", "stem/norm"),
        "layer1/0/skip_conv/kernel": Rule(4, "conv"),
    }
    plain = Classify(**TINY, low_rank_norm=False).plan(specs)
    assert not any(rule.norm for rule in plain.values())
    with pytest.raises(ValueError, match="this model has none"):
        Classify(**TINY).plan({"head": specs["stem"]["norm"]})


@pytest.mark.parametrize(
    "options",
    [
        dict(low_rank=1.0),
        dict(low_rank_every=-1),
        dict(low_rank_floor=0),
        dict(low_rank_measured=-1),
    ],
    ids=str,
)
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match="low_rank"):
        Classify(**{**TINY, **options}).validate()
