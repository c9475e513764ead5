"""A scrutinizer in a run: an honest cloud passes, one of another task does not."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from splitjax import Link, Split, codecs, cut, data
from splitjax.adapters.linen import from_linen
from splitjax.algorithms.party import one_row_each
from splitjax.algorithms.split import split_learning
from splitjax.core.codec import chain
from splitjax.metrics.loss import cross_entropy
from splitjax.privacy import scrutinizer
from splitjax.privacy.detector import Scrutinizer
from splitjax.runtime.local import Local
from splitjax.train.finetune import Finetune
from splitjax.train.loop import train
from splitjax.train.scrutiny import counted, told


def verdicts(loss, codec=None, steps=14, micro=1, watch=None, **kwargs):
    """The metrics of each step of a split run on digits."""
    table = data.load_images("digits", "train")
    x = np.float32(table.image.reshape(len(table), -1) / 255.0)
    stages = (from_linen(nn.Dense(48), "body"), from_linen(nn.Dense(10), "head"))
    link = Link(codec or chain(), chain())
    split = Split(cut(stages, after="body"), (link,), loss)
    kwargs |= dict(micro=micro, watch=watch or scrutinizer())
    made = split_learning(split, optax.sgd(0.1), **kwargs)
    driver = Local(made, jax.random.key(0))
    params, state = split.init(jax.random.key(1), jnp.asarray(x[:32]))
    run, found = driver.start(params, state, x[:32]), []
    for step in range(steps):
        batches = []
        for tick in range(micro * step, micro * step + micro):
            rows = slice(32 * tick, 32 * tick + 32)
            target = {"y": np.int32(table.label[rows]), "n_valid": np.int32(32)}
            share = np.float32(1 / micro)
            batches.append({"x": x[rows], "target": target, "weight": share})
        run, metrics = driver.step(run, batches)
        found.append({name: float(value) for name, value in metrics.items()})
    return found


def another_task(y, target):
    """Of no label."""
    return jnp.mean(y), {}


@pytest.mark.parametrize("sync", [False, True])
def test_an_honest_cloud_passes(sync):
    found = verdicts(cross_entropy, codecs.quantize(8), exact_norm=sync)
    assert found[-1]["gap"] > 0.4
    assert not any(each["hijacked"] or each["blown_up"] for each in found)


def test_a_cloud_that_trains_something_else_is_told():
    flags = [each["hijacked"] for each in verdicts(another_task)]
    assert not any(flags[:8]) and flags[-1]


@pytest.mark.parametrize("sync", [False, True])
def test_what_one_tick_shows_is_told_of_its_step(sync):
    """Not that of the last tick alone, which ends the step."""

    def update(ticks, g, labels):
        gap = ticks.astype(jnp.float32)
        return ticks + 1, {"gap": gap, "hijacked": ticks == 1, "blown_up": ticks == 3}

    watch = Scrutinizer(lambda: jnp.int32(0), update)
    more = dict(steps=2, micro=3, watch=watch, exact_norm=sync)
    one, two = verdicts(cross_entropy, **more)
    assert (one["gap"], one["hijacked"], one["blown_up"]) == (2, True, False)
    assert (two["gap"], two["hijacked"], two["blown_up"]) == (5, False, True)


def test_examples_must_have_rows_and_labels_be_classes():
    with pytest.raises(ValueError, match="32 examples have no row each"):
        verdicts(cross_entropy, codecs.c3(4), steps=1)
    with pytest.raises(ValueError, match="labels are float32"):
        one_row_each(jnp.ones((2, 3)), jnp.ones(2))
    with pytest.raises(ValueError, match=r"have the shape \(2, 3\), not \(B,\)"):
        one_row_each(jnp.ones((2, 3)), jnp.ones((2, 3), jnp.int32))


def test_where_no_gradient_comes_there_is_nothing_to_watch():
    stages = (from_linen(nn.Dense(4), "body"), from_linen(nn.Dense(2), "head"))
    split = Split(cut(stages), (), cross_entropy)
    with pytest.raises(ValueError, match="none come"):
        split_learning(split, optax.sgd(0.1), watch=scrutinizer())
    with pytest.raises(ValueError, match="scrutinize=True"):
        Finetune(task="cola", scrutinize=True, frozen_edge=True).validate()


def test_the_first_bad_verdict_is_kept_and_warned_of(caplog):
    facts, good = {}, {"gap": 0.7, "hijacked": 0.0, "blown_up": 0.0}
    told(facts, {"loss": 1.0}, 1)
    assert not facts
    told(facts, good, 1)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        for step in (2, 3):
            told(facts, {**good, "gap": 0.1, "hijacked": 1.0}, step)
        told(facts, good, 4)
    assert facts["scrutinizer"] == {"gap": 0.7, "hijacked_at": 2, "blown_up_at": None}
    assert len(caplog.records) == 1 and "step 2" in caplog.text


def test_a_run_says_what_its_scrutinizer_saw(options, tmp_path, monkeypatch):
    """And what its codecs have counted."""
    made, step = options(scrutinize=True, ragged=False, epochs=1), Local.step

    def spoilt(self, *args, **kwargs):
        run, metrics = step(self, *args, **kwargs)
        return run, {**metrics, "link_0/nonfinite": 2}

    monkeypatch.setattr(Local, "step", spoilt)
    summary = train(made, 0, tmp_path, progress=False)
    assert summary["nonfinite"] == {"values": 2 * summary["steps"], "first_at": 1}
    seen = summary["scrutinizer"]
    assert -2 <= seen["gap"] <= 2 and seen["gap"] != 0
    assert seen["hijacked_at"] is None  # too early for a verdict


def test_values_that_are_not_finite_are_counted_and_warned_of_once(caplog):
    facts, none = {}, {"loss": 1.0, "link_0/nonfinite": 0, "gap": 0.1}
    counted(facts, none, 1)
    assert not facts and not caplog.records
    with caplog.at_level(logging.WARNING):
        for step in (2, 3):
            more = {"link_0/nonfinite": jnp.int32(5), "link_0/backward_nonfinite": 2.0}
            counted(facts, {**none, **more}, step)
        counted(facts, none, 4)
    assert facts["nonfinite"] == {"values": 14, "first_at": 2}
    assert len(caplog.records) == 1
    assert "step 2: 7 values" in caplog.text and "backward_nonfinite" in caplog.text
    assert "clip" in caplog.text  # what to do
