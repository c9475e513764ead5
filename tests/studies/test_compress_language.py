import dataclasses
import json

import jax
import numpy as np
import pytest

from splitjax.core.factor import is_factor, materialize
from splitjax.studies.compress.compress import params_of
from splitjax.studies.compress.language import (
    CompressLanguage,
    TunedLanguage,
    compress_language,
    measured,
)
from splitjax.studies.compress.methods import fitted
from splitjax.train.language import open_model, scorer
from splitjax.train.runs import open_trained


@pytest.fixture(scope="module")
def experiment(tiny_language):
    folder, text = tiny_language
    return CompressLanguage(
        model=str(folder),
        corpus=str(text),
        split="train",
        tokens=40,
        window=8,
        batch_size=8,
        shares=(0.6,),
        where=r"layer_\d+/.*/kernel",
        fisher_windows=6,
        fisher_window=8,
        fisher_chunk=2,
    )


@pytest.fixture(scope="module")
def made(experiment, tmp_path_factory):
    """Its rows, and the folder."""
    folder = tmp_path_factory.mktemp("compress_language")
    return compress_language(experiment, folder), folder


def test_each_point_has_its_costs_and_its_perplexity(made, experiment):
    rows, folder = made
    assert json.loads((folder / "compress.json").read_text()) == rows
    names = ["dense", "svd 60%", "fwsvd 60%", "wsvd 60%"]
    assert [row["name"] for row in rows] == names
    dense = rows[0]
    # query, out: 16 x 16, rank 4; key, value: 16 x 8, rank 3; the rest: 16 x 24, 5.
    saved = 2 * (256 - 4 * 32) + 2 * (128 - 3 * 24) + 3 * (384 - 5 * 40)
    for row in rows[1:]:
        assert row["parameters"] == dense["parameters"] - saved
        assert row["bytes"] == 4 * row["parameters"] and row["flops"] < dense["flops"]
        assert row["before"] == dense["value"] != row["value"]
        assert row["scores"]["tokens"] == 39 and row["unit"] == "train perplexity"
    _, plain, by_rows, by_entries = rows
    assert plain["error"] <= min(by_rows["error"], by_entries["error"])
    assert by_entries["weighted_error"] < by_rows["weighted_error"]


def test_a_point_is_the_model_that_its_row_tells_of(made, experiment):
    opened = open_model(experiment.model)
    weights = measured(experiment, opened)
    new = fitted(experiment, opened.params, weights, "fwsvd", 0.6)
    assert sum(map(is_factor, jax.tree.leaves(new, is_leaf=is_factor))) == 7
    windows = experiment.windows(opened.tokenizer)
    found = scorer(opened)(materialize(new), windows)
    assert found == pytest.approx(made[0][2]["scores"])


def test_options_that_make_no_sense_are_refused(experiment):
    wrong = {
        "factors": ("svdd",),
        "shares": (1.5,),
        "solver": "adam",
        "fisher_windows": 0,
        "codes": 2.0,
        "tokens": 1,
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(experiment, **{name: value}).validate()
    with pytest.raises(ValueError, match="one thing each"):
        dataclasses.replace(experiment, factors=()).validate()


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["lrpet", "lrpet_rows"])
def test_what_was_compressed_trains_on_at_its_rank(tune, made, experiment, tmp_path):
    """Its text says the next words by chance: a model can only forget what it knew."""
    given = dict(tune=tune, tune_steps=6, tune_every=2, tune_rate=0.03, tune_window=8)
    one = dataclasses.replace(experiment, factors=("svd",), **given)
    one.validate()
    dense, row = compress_language(one, tmp_path)
    old = made[0][1]
    assert (row["value"], row["parameters"]) == (old["value"], old["parameters"])
    assert dense["tuned"] is None and row["tuned"] < 0.8 * row["value"]
    place = tmp_path / f"{tune}_svd_0.6"
    summary = json.loads((place / "summary.json").read_text())
    assert summary["steps"] == 6 and summary["metric_name"] == "dev perplexity"
    # A tied head is none of its own, in the run as in what was compressed.
    assert summary["parameters"] == dense["parameters"]
    opened = open_model(experiment.model)
    weights = measured(one, opened)
    run = open_trained(one.tuned("svd", 0.6, opened.params, weights), 0, place)
    kernel = params_of(run)["layer_0/ffn"]["gate"]["kernel"]
    values = np.linalg.svd(kernel, compute_uv=False)
    assert values[5] < 1e-5 * values[0] < values[4]
    again = scorer(opened)(params_of(run), experiment.windows(opened.tokenizer))
    assert row["tuned"] == pytest.approx(again["perplexity"], rel=1e-4)


def test_a_tuned_run_is_of_its_point(experiment):
    one = dataclasses.replace(experiment, tune="factors")
    runs = [
        dataclasses.replace(one, **more).tuned(factor, 0.6, {})
        for factor, more in (
            ("svd", {}),
            ("fwsvd", {}),
            ("svd", dict(fisher_window=9)),
            ("svd", dict(tune_rate=1e-3)),
        )
    ]
    assert all(isinstance(run, TunedLanguage) for run in runs)
    assert len({json.dumps(run.identity(0)) for run in runs}) == 4
    assert runs[0].tied and runs[0].metric == "perplexity" and runs[0].mode == "unsplit"
    runs[0].validate()
    with pytest.raises(ValueError, match="tune='lrpet' after factors='mpo'"):
        dataclasses.replace(one, tune="lrpet", factors=("mpo",)).validate()
    with pytest.raises(ValueError, match="tune_batch=0: it must be 1 or more"):
        dataclasses.replace(one, tune_batch=0).validate()
