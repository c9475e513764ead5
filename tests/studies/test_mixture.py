"""A mixture of two tasks with experts, from CSV files to a table."""

import csv
import json

import jax
import numpy as np
import pytest

from splitjax import data
from splitjax.core.tree import flat
from splitjax.data.batches import model_inputs
from splitjax.data.synthetic import toy
from splitjax.factors.mpo import MpoExperts
from splitjax.storage import log
from splitjax.studies.mixture import report as mixture_report
from splitjax.studies.mixture.mixture import Mixture
from splitjax.train import loop, runs
from splitjax.train.expert_options import FFN

EXPERTS = dict(experts=4, capacity=4.0, eval_capacity=4.0)


@pytest.fixture(scope="module")
def options(tiny_model, tiny_task, tmp_path_factory):
    """Two tasks of one text and of two."""
    pairs = tmp_path_factory.mktemp("pairs")
    for split, rows in (("train", 16), ("dev", 6)):
        table = toy(split, rows=rows)
        with (pairs / f"{split}.csv").open("w", newline="") as file:
            lines = zip(
                table.text_a, table.text_a[::-1], table.label.tolist(), strict=True
            )
            csv.writer(file).writerows([("text", "text_b", "label"), *lines])

    def make(**more):
        names = dict(task=f"{tiny_task}+{pairs}", model=str(tiny_model))
        given = dict(batch_size=8, max_length=8, epochs=1, **EXPERTS)
        return Mixture(**{**names, **given, **more})

    return make


def test_tasks_are_merged_and_each_keeps_logits_of_its_own(options):
    parts = options(ffn="dense").parts(0)
    labels = parts.train.encoded.label
    assert len(labels) == 24 + 16 and set(labels) == {0, 1, 2, 3}
    assert set(labels[:24]) == {0, 1} and set(labels[24:]) == {2, 3}
    assert parts.facts == {"classes": 4, "pairs": True, "steps_per_epoch": 5}
    assert list(parts.evals)[0] == "dev" and len(parts.evals["dev"]) == 16
    assert set(parts.evals[options().tasks[1]].encoded.label) == {2, 3}
    types = parts.train.encoded.types
    assert not np.concatenate(types[:24]).any() and np.concatenate(types[24:]).any()
    second = options().tasks[1]
    few = options(ffn="dense", limit=4, score_on=(second,)).parts(0)
    assert len(few.train) == 8 and list(few.evals) == [second]


def outputs(parts):
    """Of a model before training, for one batch of the dev set."""
    [batch] = next(iter(parts.evals["dev"].epoch(0, shuffle=False)))
    model = parts.split.cut.model
    params, state = (
        parts.split.cut.merge(tree) for tree in (parts.params, parts.state)
    )

    def run(params, x):
        return model.apply(params, state, x, key=None, train=False)[0]

    return jax.jit(run)(params, model_inputs(batch))


def test_before_training_experts_compute_what_the_dense_model_computes(options):
    made = {ffn: options(ffn=ffn).parts(0) for ffn in FFN}
    want = outputs(made["dense"])
    for ffn in ("moe", "mpoe"):
        assert np.allclose(outputs(made[ffn]), want, atol=1e-4)
    count = {
        ffn: sum(leaf.size for leaf in jax.tree.leaves(parts.params))
        for ffn, parts in made.items()
    }
    assert count["dense"] < count["mpoe"] < count["moe"]


def test_a_run_learns_and_its_shared_cores_wait_for_a_coin(options, tmp_path):
    """Which never falls; the rest moves, and the log tells of the load."""
    experiment = options(mask=1.0, steps=1)
    [start] = jax.tree.map(np.array, experiment.parts(0).params)
    summary = loop.train(experiment, 0, tmp_path, progress=False)
    assert summary["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(start))
    [line] = [line for line in log.read(tmp_path) if "loss" in line]
    assert 0.25 <= line["layer_1/ffn/busiest"] <= 1 and "layer_0/ffn/dropped" in line
    run = runs.open_trained(experiment, 0, tmp_path)
    run.driver.close()
    kernel = run.state.edge["params"]["0"]["layer_0/ffn"]["wi"]["kernel"]
    old = start["layer_0/ffn"]["wi"]["kernel"]
    assert isinstance(kernel, MpoExperts)
    assert np.array_equal(kernel.central, old.central)
    assert not np.array_equal(kernel.left[0], old.left[0])
    rows = [mixture_report.row("mpoe", [summary])]
    assert "1.00x" in mixture_report.table(rows) and json.dumps(rows)


@pytest.mark.slow
def test_a_mixture_can_be_cut(options, tmp_path):
    experiment = options(mode="split", after=("layer_0",), steps=2)
    summary = loop.train(experiment, 0, tmp_path, progress=False)
    assert summary["bytes_up"] > 0 and summary["steps"] == 2
    lines = [line for line in log.read(tmp_path) if "loss" in line]
    assert {"layer_0/ffn/dropped", "layer_1/ffn/dropped"} <= set(lines[0])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (dict(ffn="moo"), "ffn='moo'"),
        (dict(score_on=("test",)), "score_on='test': it must be one of .'dev', 'cola'"),
        (dict(task="rte+rte"), "each once"),
        (dict(task="rte+"), "each once"),
        (dict(squeeze=True), "squeeze=True"),
        (dict(head="cosine"), "classification"),
        (dict(mask=1.5), "mask=1.5"),
        (dict(max_bond=-1), "max_bond=-1"),
        (dict(router="top2", experts=1), "top2"),
        (dict(capacity=0.0), "dropped"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(fields, match):
    with pytest.raises(ValueError, match=match):
        Mixture(**fields).validate()


def test_a_regression_is_no_part_of_a_mixture(options, monkeypatch):
    table = data.Table("toy", "train", ["red"], None, np.array([0.5]), 0)
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: table)
    with pytest.raises(data.DataError, match="no regression"):
        options(task="stsb+rte").parts(0)


@pytest.mark.slow
def test_experts_lie_apart_and_learn_as_on_one_device(options, tmp_path):
    """Over an axis of their own, beside ZeRO on the data axis: a config each."""
    given = dict(ffn="moe", steps=2, warmup=0.0, learning_rate=1e-3)
    alone = options(**given, mode="unsplit")
    spread = options(
        **given, mode="split", after=("embed",), mesh="data=2,expert=4", zero=3
    )
    found = []
    for name, experiment in (("alone", alone), ("spread", spread)):
        run = runs.open_run(experiment, 0, tmp_path / name)
        state, losses = run.state, []
        for [batch] in list(run.parts.train.epoch(0))[:2]:
            total = int(batch["n_valid"])
            state, metrics = run.driver.step(state, [loop.tick_batch(batch, total)])
            losses.append(float(metrics["loss"]))
        found.append(losses)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    kernels = {
        name: leaf
        for name, leaf in flat(state.slot).items()
        if name.endswith("layer_1/ffn/wi/kernel")
    }
    assert len(kernels) >= 3  # and Adam's two moments
    for leaf in kernels.values():
        one, inputs, outputs = leaf.addressable_shards[0].data.shape
        assert leaf.shape == (4, 16, 32) and (one, inputs * outputs) == (1, 256)
