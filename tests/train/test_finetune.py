"""Fine-tuning end to end, from a model's folder and a CSV task to a summary."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from splitjax import data
from splitjax.data.batches import model_inputs
from splitjax.storage import log
from splitjax.train import loop
from splitjax.train.finetune import Finetune

FOUR_BITS = dict(forward_bits=4, backward_bits=4)
RUNS = {
    "unsplit": dict(mode="unsplit"),
    "layer cut": dict(after=("layer_0",)),
    "svd": {},
    "pca": dict(bridge="pca", micro=2, in_flight=2, **FOUR_BITS),
    "whole skip": dict(keep_skip=True, label_side="edge", dtype="bfloat16"),
    "narrow skip": dict(skip=2, frozen_edge=True),
    "debug": dict(debug=True, steps=1),
}
LONG = ("pca", "whole skip")
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in LONG else [])
    for name in RUNS
]
SPLIT = NAMES[1:]


@pytest.fixture(scope="module")
def ran(options, watch, tmp_path_factory):
    """A function from a name of RUNS to its `Watched` run, done once."""
    done = {}

    def run(name):
        if name not in done:
            folder = tmp_path_factory.mktemp("run")
            done[name] = watch(options(**RUNS[name]), folder)
        return done[name]

    return run


def same(a, b) -> list[bool]:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return [np.array_equal(x, y) for x, y in pairs]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_learns_and_is_summed_up(name, ran):
    seen = ran(name)
    lines = [line for line in log.read(seen.folder) if "loss" in line]
    steps = RUNS[name].get("steps", 3)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert seen.summary == json.loads((seen.folder / "summary.json").read_text())
    assert seen.summary["steps"] == steps
    assert seen.summary["metric_name"] == "dev accuracy"
    assert seen.summary["scores"] == [{"epoch": 1, "dev": seen.summary["metric"]}]
    assert 0 <= seen.summary["metric"] <= 1
    cloud = "edge" if name == "unsplit" else "slot"
    before, after = (getattr(s, cloud)["params"] for s in (seen.start, seen.end))
    assert not all(same(before, after))


def test_it_is_scored_on_the_splits_that_are_named(options):
    """Which ones changes no number of a run, so a checkpoint serves with others."""
    experiment = options(score_on=("dev",))
    assert list(experiment.parts(0).evals) == ["dev"]
    assert experiment.identity(0) == options().identity(0)
    both = Finetune(task="stsb")
    assert both.splits() == ("dev", "test")
    dataclasses.replace(both, score_on=("test",)).validate()
    with pytest.raises(ValueError, match="score_on='tset': it must be one of"):
        dataclasses.replace(both, score_on=("tset",)).validate()


@pytest.mark.parametrize("name", SPLIT)
def test_bytes_and_their_ratio_are_those_of_the_frames(name, ran):
    summary = ran(name).summary
    sent = {(row["kind"], row["direction"]): row["bytes"] for row in summary["bytes"]}
    assert summary["bytes_up"] == sent["train", "up"]
    assert summary["bytes_down"] == sent.get(("train", "down"), 0)
    assert summary["baseline_bytes"] == 2 * 4 * 16 * summary["tokens"]
    total = summary["bytes_up"] + summary["bytes_down"]
    assert summary["ratio"] == round(summary["baseline_bytes"] / total, 2)
    assert summary["bytes_setup"] > 0
    assert 0 < summary["edge_share"] < 1
    last = [line for line in log.read(ran(name).folder) if "loss" in line][-1]
    assert (last["up"], last["down"]) == (summary["bytes_up"], summary["bytes_down"])


def test_an_unsplit_run_sends_nothing(ran):
    seen = ran("unsplit")
    assert seen.sent == [] and seen.summary["bytes"] == []
    assert seen.summary["ratio"] is None and seen.summary["edge_share"] == 1.0


def test_tokens_are_those_of_the_texts(ran, tiny_model, tiny_task):
    table = data.load(str(tiny_task), "train")
    encoded = data.Tokenizer(tiny_model).encode(table, max_length=8)
    for name in ("unsplit", "svd", "pca"):
        assert ran(name).summary["tokens"] == encoded.lengths().sum()


def test_a_narrow_cut_and_few_bits_send_less(ran):
    total = {
        name: ran(name).summary["bytes_up"] + ran(name).summary["bytes_down"]
        for name in ("layer cut", "svd", "pca")
    }
    # A quarter of the width, then an eighth of the bits; framing is not counted in.
    assert total["svd"] < 0.45 * total["layer cut"]
    assert total["pca"] < 0.5 * total["svd"]
    assert ran("layer cut").summary["baseline_bytes"] < total["layer cut"]


def test_a_whole_layer_cut_learns_what_the_unsplit_model_learns(ran):
    losses = {
        name: [line["loss"] for line in log.read(ran(name).folder) if "loss" in line]
        for name in ("unsplit", "layer cut", "svd")
    }
    np.testing.assert_allclose(losses["layer cut"], losses["unsplit"], rtol=1e-4)
    assert losses["svd"][0] != losses["unsplit"][0]


def test_the_first_layers_without_dropout_are_a_model(options):
    parts = options(layers=1, layer=0, dropout=False).parts(0)
    split, [[batch], *_] = parts.split.cut, list(parts.train.epoch(0))
    names = [stage.name for stage in split.model.stages]
    assert "layer_0/expand" in names and "layer_1/ffn" not in names
    tree = split.merge(parts.params), split.merge(parts.state), model_inputs(batch)
    key = jax.random.key(0)
    learned, scored = (
        split.model.apply(*tree, key=key if train else None, train=train)[0]
        for train in (True, False)
    )
    np.testing.assert_array_equal(learned, scored)


@pytest.mark.parametrize(
    ("layers", "says"), [(-1, "layers=-1: 1 or more, or 0"), (3, "layers=3: .* has 2")]
)
def test_g_layers_that_the_model_has_not(layers, says, options):
    with pytest.raises(ValueError, match=says):
        made = options(layers=layers)
        made.validate()
        made.parts(0)


def test_debug_computes_what_jit_does(ran):
    one, other = (log.read(ran(name).folder)[0] for name in ("debug", "svd"))
    assert one["up"] == other["up"]
    np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)


def rows_of(batch) -> list[np.ndarray]:
    pairs = zip(batch["ids"], batch["mask"], strict=True)
    return [ids[mask] for ids, mask in pairs if mask.sum() >= 6]


def holds(message, rows) -> bool:
    """Whether the tokens of a text lie somewhere in a message, at any usual width."""
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(message)]
    kinds = (np.int32, np.int16, np.uint8, np.int64)
    texts = [row.astype(kind).tobytes() for row in rows for kind in kinds]
    return any(text in leaf for leaf in leaves for text in texts)


@pytest.mark.parametrize("name", SPLIT)
def test_no_text_crosses(name, ran, options):
    parts = options(**RUNS[name]).parts(0)
    batches = [
        batch for b in (parts.train, parts.evals["dev"]) for [batch] in b.epoch(0)
    ]
    rows = [row for batch in batches for row in rows_of(batch)]
    assert holds(model_inputs(batches[0]), rows)  # the search finds what is there
    sent = ran(name).sent
    assert {kind for kind, _, _ in sent} == {"train", "predict"}
    assert not any(holds(message, rows) for _, _, message in sent)


def test_labels_cross_only_where_the_cloud_has_them(ran):
    for name, expected in (("svd", True), ("whole skip", False)):
        kinds = [set(m) for kind, way, m in ran(name).sent if way == "up"]
        assert any("target" in kind for kind in kinds) == expected


def test_a_frozen_edge_stays_as_it_is(ran):
    frozen, other = ran("narrow skip"), ran("svd")
    assert all(same(frozen.start.edge["params"], frozen.end.edge["params"]))
    assert not all(same(other.start.edge["params"], other.end.edge["params"]))
    assert frozen.summary["bytes_down"] == 0
    assert other.summary["bytes_down"] > 0


def test_a_finished_run_is_not_run_again(ran, options, monkeypatch):
    seen = ran("svd")
    monkeypatch.setattr(loop, "open_run", None)
    assert loop.train(options(), 0, seen.folder) == seen.summary
    with pytest.raises(ValueError, match="rank: 4 there, 8 now"):
        loop.train(options(rank=8), 0, seen.folder)


def test_g_a_folder_that_nothing_is_read_from_is_told(options):
    with pytest.raises(ValueError, match="data_dir='/mine' with task=.*leave it empty"):
        options(data_dir="/mine").validate()
    for task in ("sst2", "tfds:imdb_reviews"):
        Finetune(task=task, data_dir="/mine").validate()
