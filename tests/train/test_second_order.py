"""`optimizer="kfac"` in an experiment: both parties, taps, checkpoints, bad options."""

import contextlib
import dataclasses
import itertools
import threading

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.core.message import tree_bytes
from splitjax.core.tree import flat, spec_of
from splitjax.optim import dp_kfac, kfac, with_taps
from splitjax.optim.curvature import TAPS, without_own
from splitjax.runtime.channel import pipe
from splitjax.runtime.cloud import Cloud
from splitjax.runtime.programs import begin, weights_of
from splitjax.runtime.run_state import RunState
from splitjax.storage import log
from splitjax.train.classify import Classify
from splitjax.train.drivers import ToCloud
from splitjax.train.finetune import Finetune
from splitjax.train.loop import tick_batch, train
from splitjax.train.runs import open_run
from splitjax.train.second_order import tell_left_out
from splitjax.train.serve import build

TINY = dict(
    task="digits",
    model="cnn",
    after=("block1",),
    batch_size=8,
    limit=16,
    eval_limit=8,
    epochs=1,
    pad=0,
    flip=False,
    warmup=0.0,
    clip=1.0,
    learning_rate=1e-2,
    optimizer="kfac",
    kfac_layers=".*/conv/kernel|head/classifier/kernel",
)


def kernels(state):
    """Kernels of both parties by stage name."""
    found = {}
    for held in (state.edge, state.slot):
        for name, leaf in flat(held.get("params", {}) if held else {}).items():
            if name.endswith("kernel"):
                found[name.partition("/")[2]] = np.asarray(leaf)
    return found


def stepped(experiment, folder, *, steps=1, cloud=None):
    """A run's state before and after its first steps, and its parts."""
    run = open_run(experiment, 0, folder, cloud)
    before, state = kernels(run.state), run.state
    epoch = run.parts.train.epoch(0, micro=experiment.micro)
    with contextlib.closing(run.driver):
        for batches in itertools.islice(epoch, steps):
            total = sum(int(batch["n_valid"]) for batch in batches)
            ticks = [tick_batch(batch, total) for batch in batches]
            names = [str(number) for number in range(len(ticks))]
            state, _ = run.driver.step(state, ticks, in_flight=1, names=names)
    return before, state, run.parts


def test_each_party_preconditions_its_own_half(tmp_path):
    """Without K-FAC's clip, which is per party, the halves step as the whole does."""
    made = Classify(**TINY, kfac_clip=0.0)
    first, split, parts = stepped(made, tmp_path / "split")
    whole = dataclasses.replace(made, mode="unsplit")
    again, unsplit, _ = stepped(whole, tmp_path / "whole")
    for name, kernel in kernels(split).items():
        np.testing.assert_array_equal(first[name], again[name])
        assert (kernel != first[name]).any()
        np.testing.assert_allclose(
            kernel, kernels(unsplit)[name], rtol=0, atol=1e-6, err_msg=name
        )
    for held in (split.edge, split.slot):
        taps = [a for n, a in flat(held["params"]).items() if TAPS in n]
        assert taps and not any(np.any(a) for a in taps)
    assert parts.setup_bytes == tree_bytes(without_own(parts.params[0]))


@pytest.mark.slow
def test_layers_without_factors_step_as_without_k_fac(tmp_path):
    made = Classify(**TINY, kfac_clip=0.0)
    _, state, _ = stepped(made, tmp_path / "kfac")
    _, other, _ = stepped(dataclasses.replace(made, optimizer="sgd"), tmp_path / "sgd")
    for name, kernel in kernels(state).items():
        same = np.allclose(kernel, kernels(other)[name], rtol=0, atol=1e-6)
        assert same == ("hidden" in name), name


@pytest.mark.slow
def test_two_micro_batches_are_one_step(tmp_path):
    made = Classify(**TINY, kfac_clip=0.0)
    _, one, _ = stepped(made, tmp_path / "one")
    _, two, _ = stepped(dataclasses.replace(made, micro=2), tmp_path / "two")
    for name, kernel in kernels(one).items():
        np.testing.assert_allclose(kernel, kernels(two)[name], rtol=0, atol=1e-5)


def test_taps_are_not_sent_and_are_there_at_the_edge():
    parts = Classify(**TINY).parts(0)
    owners = parts.split.cut.owners
    weights = weights_of("edge", owners, parts.params, parts.state)
    assert not any(TAPS in name for name in flat(weights))
    [batch] = next(iter(parts.train.epoch(0, micro=1)))
    x = tick_batch(batch, 8)["x"]
    edge = begin(parts.algorithm, weights, parts.params, parts.state, x)
    params = flat(edge["params"])
    for name, leaf in flat({"0": parts.params[0]}).items():
        np.testing.assert_array_equal(params[name], leaf)
    specs = Classify(**TINY).parts(0, weights=False).params
    assert any(TAPS in name for name in flat(specs[0]))
    assert spec_of(specs) == spec_of(parts.params)


def test_an_edge_and_its_cloud_step_as_both_halves_here(tmp_path):
    """In the second step the edge's gradient is of what the cloud made of the first."""
    made = Classify(**TINY)
    _, one, _ = stepped(made, tmp_path / "one", steps=2)
    mine, theirs = pipe()
    with contextlib.closing(Cloud(build(made), tmp_path / "cloud")) as cloud:
        served = threading.Thread(target=cloud.serve, args=(0, theirs))
        served.start()
        there = ToCloud(lambda: mine)
        _, two, _ = stepped(made, tmp_path / "two", steps=2, cloud=there)
    served.join()
    assert not two.slot
    assert flat(two.edge).keys() == flat(one.edge).keys()
    for name, leaf in flat(one.edge).items():
        np.testing.assert_array_equal(flat(two.edge)[name], leaf, err_msg=name)


@pytest.mark.slow
def test_a_party_without_layers_steps_plainly(tmp_path):
    """After the embeddings: all that the edge trains are tables."""
    made = Classify(**{**TINY, "after": ("pixels",)})
    before, state, _ = stepped(made, tmp_path)
    assert all((kernels(state)[name] != before[name]).any() for name in before)


def test_g_what_k_fac_leaves_out_is_written_and_warned_of(tmp_path, caplog):
    """Of both parties; and not a word where it has left out nothing."""
    params = with_taps({"kernel": jnp.ones((2, 1))})
    state = dp_kfac(optax.sgd(1), kl_clip=None).init(params)
    bad = state._replace(skipped=jnp.int32(3), plain=jnp.int32(1))
    held = {"params": params, "opt": (optax.EmptyState(), bad)}
    with contextlib.closing(log.Log(tmp_path, 0)) as lines:
        tell_left_out(lines, RunState({"opt": state}, {}, {}, step=1))
        assert not caplog.records and not log.read(tmp_path)
        both = RunState(held, {}, {"opt": bad}, step=2)
        tell_left_out(lines, both)
    assert log.read(tmp_path) == [{"step": 2, "kfac/skipped": 6, "kfac/plain": 2}]
    [told] = caplog.records
    assert told.levelname == "WARNING" and "'skipped': 6" in told.getMessage()
    assert "raise kfac_damping" in told.getMessage()


@pytest.mark.slow
def test_g_a_run_tells_what_k_fac_leaves_out(tmp_path, monkeypatch, caplog):
    """Here every layer, since no factor has an inverse."""

    def without(known, damping, method):
        return known._replace(plain=known.plain | True), known.plain & False

    monkeypatch.setattr(kfac, "inverted", without)
    train(Classify(**{**TINY, "limit": 8}), 0, tmp_path, progress=False)
    [line] = [one for one in log.read(tmp_path) if "kfac/plain" in one]
    assert line == {"step": 1, "kfac/plain": 3.0}  # of the edge and of the cloud
    assert "K-FAC until step 1" in caplog.text


def test_options_decide_a_run_only_where_they_are_read():
    other = Classify(**TINY, kfac_damping=0.5)
    assert other.identity(0) != Classify(**TINY).identity(0)
    first, second = (
        dataclasses.replace(one, optimizer="sgd") for one in (other, Classify(**TINY))
    )
    assert first.identity(0) == second.identity(0)


def test_g_options_and_layers_are_named():
    with pytest.raises(ValueError, match="damping=0.0: it must be above 0"):
        Classify(**TINY, kfac_damping=0.0).validate()
    with pytest.raises(ValueError, match="kfac_tokens='sum'"):
        Finetune(task="stsb", kfac_tokens="sum").validate()
    wrong = Classify(**{**TINY, "kfac_layers": "head/nothing"})
    with pytest.raises(ValueError, match="(?s)chooses none of.*0/block1/0/conv/kernel"):
        wrong.parts(0)
