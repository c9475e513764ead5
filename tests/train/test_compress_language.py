import dataclasses
import json

import jax
import pytest

from splitjax.core.factor import is_factor, materialize
from splitjax.train.compress_language import (
    CompressLanguage,
    compress_language,
    measured,
)
from splitjax.train.compress_methods import fitted
from splitjax.train.language import open_model, scorer


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
