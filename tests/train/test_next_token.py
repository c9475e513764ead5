"""A decoder trained to predict a text, whole and cut anywhere, through the loop."""

import functools
import json
import logging

import jax
import numpy as np
import pytest

from splitjax import data
from splitjax.core.stage import join
from splitjax.data.batches import model_inputs
from splitjax.factors.mpo import MpoExperts
from splitjax.models.decoder import decoder
from splitjax.runtime.meter import Meter
from splitjax.storage import log
from splitjax.train import loop
from splitjax.train.drivers import make_driver
from splitjax.train.language import Opened, folder_of, read_config, scorer
from splitjax.train.next_token import NextToken
from splitjax.train.runs import Run, evaluate, open_run, predict

PLACES = ("embed", "layer_0/attention", "layer_0/ffn", "norm")
CUTS = [(place,) for place in PLACES] + [PLACES[:2], ("layer_0", "norm")]
UNSPLIT = dict(mode="unsplit")
ENDS = dict(after=("embed", "layer_0"))  # the text stays at the edge
RATE = dict(learning_rate=0.03, schedule="constant", warmup=0.0)


@pytest.fixture(scope="module")
def gradient(language):
    """A function to the loss and the gradient of one batch, with dropout."""

    def of(family, **more):
        parts = language(family, **more).parts(0)
        [batch] = next(iter(parts.train.epoch(0)))
        tick, split = loop.tick_batch(batch, batch["n_valid"]), parts.split
        links = split.init_links(parts.params, parts.state, tick["x"])
        key = jax.random.key(7)

        @jax.jit
        def run(params):
            return split.value_and_grad(
                params, parts.state, links, tick["x"], tick["target"], key=key
            )

        (value, _), grads = run(parts.params)
        return float(value), split.cut.merge(grads)

    return of


@pytest.fixture(scope="module")
def unsplit(gradient):
    """The same of the whole model; a function, which computes it once a family."""
    return functools.cache(lambda family: gradient(family, **UNSPLIT))


@pytest.mark.parametrize("places", CUTS, ids="+".join)
@pytest.mark.parametrize(
    "family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)]
)
def test_split_is_unsplit_between_any_two_sub_blocks(family, places, gradient, unsplit):
    value, grads = gradient(family, after=places)
    other, want = unsplit(family)
    assert value == other
    assert jax.tree.structure(grads) == jax.tree.structure(want)
    for one, two in zip(jax.tree.leaves(grads), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6 * np.abs(two).max())


@pytest.fixture(scope="module")
def ran(language, watch, tmp_path_factory):
    """A function to a watched run of three epochs of the Llama form."""

    def run(**more):
        experiment = language(epochs=3, **RATE, **more)
        return watch(experiment, tmp_path_factory.mktemp("run"))

    return run


@pytest.fixture(scope="module")
def runs(ran):
    return {"unsplit": ran(**UNSPLIT), "ends": ran(**ENDS)}


def losses(seen):
    return [line["loss"] for line in log.read(seen.folder) if "loss" in line]


def test_a_cut_run_learns_what_the_unsplit_one_learns(runs):
    """Four words in equal parts: no model of them has a perplexity below about 4."""
    np.testing.assert_allclose(*map(losses, runs.values()), rtol=1e-4)
    for seen in runs.values():
        assert seen.summary == json.loads((seen.folder / "summary.json").read_text())
        assert seen.summary["metric_name"] == "dev perplexity"
        assert seen.summary["lower_is_better"] is True
        assert seen.summary["before"]["dev"] > 12 > 8 > seen.summary["metric"] > 3.5
    sent = runs["ends"].summary
    assert sent["bytes_up"] > 0 < sent["bytes_down"]
    # Two cuts, 16 wide, both ways, as float32.
    assert sent["baseline_bytes"] == 2 * 2 * 4 * 16 * sent["tokens"]
    assert sent["tokens"] == 3 * 24 * 8
    assert runs["unsplit"].summary["bytes"] == []


@pytest.mark.parametrize("tied", [False, True])
def test_the_score_is_that_of_the_whole_model(tied, language):
    """`train.language` scores it in one piece: also the short window at the end."""
    experiment = language("gpt2", tied=tied, score_on=("test", "dev"), **UNSPLIT)
    parts = experiment.parts(0)
    folder = folder_of(experiment.model)
    config = read_config(folder, tied=tied)
    opened = Opened(
        join(decoder(config)),
        parts.split.cut.merge(parts.params),
        parts.split.cut.merge(parts.state),
        data.Tokenizer(folder),
    )
    driver = make_driver(experiment, 0, parts, Meter(), None)
    x = model_inputs(next(iter(parts.train.epoch(0)))[0])
    run = Run(parts, driver, driver.start(parts.params, parts.state, x), {}, None)
    found = evaluate(run)
    assert list(found) == ["test", "dev"]
    for name, value in found.items():
        windows = parts.evals[name]
        assert len(windows.stream) % 8 != 1
        want = scorer(opened)(opened.params, windows)
        assert value == pytest.approx(want["perplexity"], rel=1e-5)
    score = type(experiment).SCORES["bits"]
    rows = predict(run, parts.evals["dev"])
    assert rows[1].sum() == len(parts.evals["dev"].stream) - 1
    assert score(*rows) == pytest.approx(np.log2(found["dev"]))


def words_in(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype.kind in "iu"]


def test_with_the_ends_at_the_edge_no_token_crosses(runs, ran, caplog):
    sent = runs["ends"].sent
    assert {kind for kind, _, _ in sent} == {"train", "predict"}
    assert not any(words_in(message) for _, _, message in sent)
    with caplog.at_level(logging.WARNING):
        seen = ran(after=("layer_0",), steps=1)
    assert "the cloud is told the next tokens" in caplog.text
    assert any("target" in message for kind, _, message in seen.sent if kind == "train")


def test_attacks_read_its_messages(ran):
    seen = ran(attack=("inversion", "dcor"), steps=1, **ENDS)
    found = seen.summary["attacks"]
    assert found["inversion"]["inversion_variance_left"] < 0.01  # embeddings cross
    assert 0 < found["dcor"]["dcor"] <= 1
    with pytest.raises(ValueError, match="guesses a class of each example"):
        ran(attack=("label",), **ENDS)


SLOW = (
    "cast('bf16')",
    "ragged() + delta(quantize(4, axis='channel', power_of_two=True))",
    "quantize(4, axis='channel', rounding='stochastic')",
    "c3(2)",
    "ragged() + quantize(8)",
    "feedback(top_k(0.25))",
    "random_k(0.5)",
    "sign() + pack_signs()",
    "binary()",
    "bounded(0.01) + lossless()",
    "scaled_sign()",
    "projection(8)",
    "powersgd(2)",
    "fixed_width(0.01, 8)",
    "perturb('gauss', scale=0.1, clip=10.0)",
)


@pytest.mark.parametrize(
    "text", ["quantize(8)", *(pytest.param(t, marks=pytest.mark.slow) for t in SLOW)]
)
def test_every_codec_takes_its_messages(text, ran, language):
    more = dict(steps=2) if "delta" not in text else dict(steps=2, edge_dropout=False)
    seen = ran(forward=text, backward="quantize(8)", **more, **ENDS)
    assert all(np.isfinite(losses(seen))) and len(losses(seen)) == 2
    assert np.isfinite(seen.summary["metric"])


def test_an_edge_that_is_frozen_sends_once(ran):
    seen = ran(after=("layer_0",), frozen_edge=True, send_once=True)
    train = [message for kind, way, message in seen.sent if kind == "train"]
    assert len(train) == 3 and seen.summary["bytes_down"] == 0


def test_texts_of_the_users_are_scored_one_by_one(language, tmp_path):
    experiment = language(**UNSPLIT)
    run = open_run(experiment, 0, tmp_path / "run")
    path = tmp_path / "mine.txt"
    path.write_text("red dog\nsky cat red dog red sky dog cat cat cat cat\n")
    texts, batches = experiment.texts(str(path))
    nats, counts = predict(run, batches)
    assert len(texts) == 2 and counts.tolist() == [1, 8]  # a window reads 8 tokens
    path.write_text("red dog\n")
    alone, _ = predict(run, experiment.texts(str(path))[1])
    assert alone[0] == pytest.approx(nats[0], rel=1e-5) and nats[1] > nats[0] > 0
    path.write_text("red dog\nsky\n")
    with pytest.raises(data.DataError, match="of two tokens or more"):
        experiment.texts(str(path))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(window=0), "window=0: it must be 1 or more"),
        (dict(limit=-1), "limit=-1: it must be 0"),
        (dict(metric="accuracy"), "metric='accuracy': it must be one of"),
        (dict(score_on=("train",)), "score_on='train': it must be one of"),
        (dict(score_on=()), "score_on is empty"),
        (dict(tied=True), "a leaf has one owner"),
        (dict(after=()), "a split run needs a place to cut"),
        (dict(scrutinize=True), "scrutinize=True .* a text has a label a token"),
        (dict(fused="True"), "fused='True': it must be one of"),
        (dict(fused="auto", mesh="data=2"), "fused='auto' beside mesh='data=2'"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, words, language):
    with pytest.raises(ValueError, match=words):
        language(**{**ENDS, **wrong}).validate()
    language(**ENDS).validate()
    language(**ENDS, fused="xla", mesh="data=2").validate()


def test_a_fused_decoder_has_the_stock_ones_logits(language):
    """The option reaches the model: its program is another one."""
    texts, values = [], []
    for fused in ("", "xla"):
        parts = language("gpt2", fused=fused, **UNSPLIT).parts(0)
        [batch] = next(iter(parts.train.epoch(0)))
        [params], [state] = parts.params, parts.state
        apply = functools.partial(parts.split.cut.model.apply, key=None, train=False)
        x = model_inputs(batch)
        texts.append(str(jax.make_jaxpr(apply)(params, state, x)))
        values.append(jax.jit(apply)(params, state, x)[0])
    np.testing.assert_allclose(values[1], values[0], rtol=1e-4, atol=1e-5)
    assert ["custom_vjp_call" in text for text in texts] == [False, True]
    with pytest.raises(ValueError, match="fused='xla' of the family 'llama'"):
        language("llama", fused="xla", **UNSPLIT).parts(0)


def test_data_that_does_not_fit_is_told(language, tiny_decoder):
    with pytest.raises(ValueError, match="17 tokens do not fit 16 positions"):
        language(window=17, **UNSPLIT).parts(0)
    with pytest.raises(ValueError, match="knows 17 tokens, and its model 9"):
        language(model=str(tiny_decoder(vocab=9)), **UNSPLIT).parts(0)
    with pytest.raises(data.DataError, match="no corpus 'wikitext3'"):
        language(task="wikitext3", **UNSPLIT).parts(0)


def test_a_cloud_checks_what_an_edge_says(language):
    experiment = language(micro=2, **ENDS)
    experiment.check_facts({"steps_per_epoch": 3})
    for facts in ({}, {"steps_per_epoch": 0}, {"steps_per_epoch": True}):
        with pytest.raises(ValueError, match="steps_per_epoch"):
            experiment.check_facts(facts)

    def batch(rows=4, width=8, dtype=np.int32, target=None):
        ids, mask = (jax.ShapeDtypeStruct((rows, width), d) for d in (dtype, np.bool_))
        made = {"x": {"ids": ids, "mask": mask}}
        if target:
            y, one = (jax.ShapeDtypeStruct(s, np.int32) for s in (target, ()))
            made |= {"target": {"y": y, "n_valid": one}, "weight": one}
        return made

    for good in (batch(), batch(rows=8), batch(target=(4, 8))):
        experiment.check_batch(good)
    wrong = [dict(rows=5), dict(width=7), dict(dtype=np.int64), dict(target=(4,))]
    for more in wrong:
        with pytest.raises(ValueError):
            experiment.check_batch(batch(**more))


EXPERTS = dict(experts=4, capacity=4.0, eval_capacity=4.0, **UNSPLIT)


def test_experts_begin_as_the_dense_model_and_share_their_cores(ran, runs):
    seen = ran(ffn="mpoe", steps=1, **EXPERTS)
    dense = runs["unsplit"].summary
    before = seen.summary["before"]["dev"]
    assert before == pytest.approx(dense["before"]["dev"], rel=1e-4)
    ffn = seen.start.edge["params"]["0"]["layer_0/ffn"]
    assert all(isinstance(ffn[n]["kernel"], MpoExperts) for n in ("gate", "wi", "wo"))
    assert seen.summary["parameters"] > dense["parameters"]
    [line] = [line for line in log.read(seen.folder) if "loss" in line]
    assert 0.25 <= line["layer_0/ffn/busiest"] <= 1 and "layer_0/ffn/dropped" in line


@pytest.mark.slow
@pytest.mark.real("smollm2", "wikitext2")
def test_smollm2_through_its_cut(tmp_path):
    """With both ends at the edge, in the pieces of configs/lm_smollm2_wikitext.py."""
    few = dict(window=1023, limit=1, eval_limit=1, batch_size=1, score_on=("test",))
    run = open_run(NextToken(after=("layer_1", "layer_28"), **few), 0, tmp_path)
    held = run.parts.split.cut.owners, run.parts.params
    sizes = {"edge": 0, "cloud": 0}
    for owner, params in zip(*held, strict=True):
        sizes[owner] += sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sizes == {"edge": 67_243_968, "cloud": 95_582_592}
    # That of tests/train/test_language.py, in one piece.
    assert evaluate(run)["test"] == pytest.approx(13.8215, abs=2e-3)
