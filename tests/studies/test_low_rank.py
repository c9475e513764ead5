"""Training at a low rank beside truncation after it."""

import dataclasses

import jax
import numpy as np
import pytest

from splitjax.core.tree import flat
from splitjax.storage.log import read
from splitjax.studies.low_rank import compare, measured
from splitjax.train.classify import Classify
from splitjax.train.runs import open_run, open_trained
from tests.train.test_low_rank import RANKS, TINY, ranks


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


def test_a_comparison_needs_a_low_rank(tmp_path):
    for wrong in (dict(low_rank=0.0), dict(mode="processes")):
        with pytest.raises(ValueError, match="needs a share"):
            compare(Classify(**{**TINY, **wrong}), 0, tmp_path)
