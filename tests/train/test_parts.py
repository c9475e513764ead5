"""What an experiment builds from its options, before anything runs."""

import csv

import jax
import pytest

from splitjax.data.synthetic import toy
from splitjax.data.table import DataError


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A file of two texts in a row, and how like they are."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    table = toy(rows=20, pairs=True)
    rows = zip(table.text_a, table.text_b, table.label.tolist(), strict=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "text_b", "label"), *rows])
    return str(path)


def first(parts):
    return next(iter(parts.train.epoch(0)))[0]


def test_two_texts_and_a_value_are_two_towers(options, pairs):
    parts = options(task=pairs, batch_size=4).parts(0)
    batch = first(parts)
    assert batch["ids"].shape == (8, 8) and batch["y"].shape == (4,)
    assert "types" not in batch and parts.score_name == "spearman"
    assert list(parts.evals) == ["dev"] and len(parts.evals["dev"]) == 2
    assert len(parts.train) == 18 and parts.baseline_width == 16


def test_two_texts_for_another_head_are_one_sequence(options, pairs):
    parts = options(task=pairs, head="regression", mode="unsplit").parts(0)
    batch = first(parts)
    assert batch["types"].shape == batch["ids"].shape == (8, 8)
    assert parts.baseline_width == parts.setup_bytes == 0
    assert parts.edge_share == 1.0


def test_options_choose_the_parts(options):
    parts = options(limit=10, metric="f1", label_side="edge", layer=0).parts(0)
    assert len(parts.train) == 10 and parts.score_name == "f1"
    assert parts.split.cut.owners == ("edge", "cloud", "edge")
    names = [[stage.name for stage in s.stages] for s in parts.split.cut.segments]
    assert names[0] == ["embed", "layer_0/attention", "layer_0/squeeze"]
    assert names[1][0] == "layer_0/expand" and names[2] == []


def test_seeds_differ_in_order_and_new_weights_only(options):
    one, other = (options().parts(seed) for seed in (0, 1))
    assert first(one)["index"].tolist() != first(other)["index"].tolist()
    edges = [jax.tree.leaves(parts.params[0]) for parts in (one, other)]
    assert all((a == b).all() for a, b in zip(*edges, strict=True))
    heads = [parts.params[1]["head"]["classifier"]["kernel"] for parts in (one, other)]
    assert (heads[0] != heads[1]).any()


def test_public_text_is_read_only_where_it_is_needed(options):
    options(fit_text=("gone.csv",)).parts(0)
    for more in (dict(bridge="pca"), dict(skip=2), dict(fit_steps=1)):
        with pytest.raises(DataError, match="there is no file gone.csv"):
            options(fit_text=("gone.csv",), **more).parts(0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(layer=2), "squeeze names layer 2; the layers are 0 to 1"),
        (dict(after=("layer_9",)), "cut after 'layer_9': no such stage"),
        (dict(model="minilmm"), "minilmm is no folder"),
        (dict(frozen_edge=True, label_side="edge"), "take exact_norm=False"),
        (dict(pool="max"), "pool 'max'"),
        (dict(forward_bits=9), "bits"),
        (dict(head="cosine"), "has no second text"),
    ],
)
def test_what_cannot_be_built_is_named(more, message, options):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        options(**more).parts(0)


def test_texts_to_predict_for_are_of_the_tasks_kind(options, pairs, tmp_path):
    path = tmp_path / "texts.tsv"
    path.write_text("red dog\tblue cat\nred\tred sky\n")
    texts, batches = options(task=pairs).texts(str(path))
    assert texts == [("red dog", "blue cat"), ("red", "red sky")] and len(batches) == 2
    with pytest.raises(DataError, match="reads 1 texts in a line"):
        options().texts(str(path))
    path.write_text("red dog\n")
    with pytest.raises(DataError, match="reads 2 texts in a line"):
        options(task=pairs).texts(str(path))
