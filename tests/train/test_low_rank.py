"""Training at a low rank, from an experiment's options to the comparison."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from splitjax.core.matrix import Rule, as_matrix
from splitjax.core.tree import flat, path_name
from splitjax.storage.log import read
from splitjax.studies.low_rank import compare, measured
from splitjax.train.classify import Classify
from splitjax.train.loop import open_run, open_trained, tick_batch

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


@pytest.mark.slow
def test_the_comparison_of_a_cut_run(tmp_path):
    """Three steps: projected after the second and, the run's last, the third."""
    rows = compare(Classify(**TINY), 0, tmp_path)
    names = [row["name"] for row in rows]
    assert names == [
        "plain",
        "truncated after training",
        "truncated after training, norms measured again",
        "projected after training",
        "projected after training, norms measured again",
        "trained at a low rank",
        "trained at a low rank, norms measured again",
    ]
    plain, *low = rows
    kernel = 3 * 3 * 32 * 64  # of block 2; block 1 has gray pictures
    want = plain["parameters"] - kernel + 16 * (3 * 3 * 32 + 64)
    assert {row["parameters"] for row in low} == {want}
    places = 4 * 4
    assert plain["macs"] - low[0]["macs"] == places * (plain["parameters"] - want)
    assert all(0 <= row["test"] <= 1 for row in rows)
    one = dataclasses.replace(Classify(**TINY), mode="split")
    run = open_trained(one, 0, tmp_path / "low_rank_seed_0")
    run.driver.close()
    assert ranks(run.state) == RANKS
    lines = read(tmp_path / "low_rank_seed_0")
    [last] = [line for line in lines if "alpha" in str(line)]
    told = {name: value for name, value in last.items() if name.startswith("alpha/")}
    assert set(told) == {"alpha/1/block2/0/conv/kernel"} and last["step"] == 3
    # 1 but for rounding where a step moved it little; 0 before any projection.
    assert 0.9999 < told["alpha/1/block2/0/conv/kernel"] < 2
    assert "alpha" not in str(read(tmp_path / "plain_seed_0"))


def test_norms_are_measured_on_what_the_new_weights_make(tmp_path):
    """Half of a first convolution makes half of its outputs, a quarter of squares."""
    run = open_run(Classify(**TINY), 0, tmp_path)
    run.driver.close()
    params, state = (
        {name: leaf for part in parts for name, leaf in part.items()}
        for parts in (run.parts.params, run.parts.state)
    )
    half = {**params, "block1/0": jax.tree.map(lambda a: a / 2, params["block1/0"])}
    whole, less = (
        flat(measured(run, one, state, 2)["block1/0"]) for one in (params, half)
    )
    for path, value in flat(state["block1/0"]).items():
        share = 0.5 if path.endswith("mean") else 0.25
        np.testing.assert_allclose(less[path], share * whole[path], rtol=1e-4)
        assert np.abs(value - whole[path]).max() > 0.01


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


def test_a_comparison_needs_a_low_rank(tmp_path):
    for wrong in (dict(low_rank=0.0), dict(mode="processes")):
        with pytest.raises(ValueError, match="needs a share"):
            compare(Classify(**{**TINY, **wrong}), 0, tmp_path)
