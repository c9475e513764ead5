"""ZeRO, recomputation, precision and offload, each by one option of an experiment."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.core.algorithm import At
from splitjax.core.tree import flat
from splitjax.data.batches import model_inputs
from splitjax.metrics.memory import device_bytes
from splitjax.parallel.spread import FROM
from splitjax.storage import log
from splitjax.train import flags
from splitjax.train.classify import Classify
from splitjax.train.finetune import Finetune
from splitjax.train.loop import tick_batch
from splitjax.train.runs import open_run

CONFIG = str(pathlib.Path(__file__).parents[2] / "configs" / "zero_minilm.py")
TINY = dict(
    task="digits",
    model="cnn",
    after=("block1",),
    batch_size=8,
    limit=24,
    eval_limit=8,
    epochs=1,
    pad=0,
    flip=False,
    learning_rate=1e-2,
)


def options(**more) -> Classify:
    return Classify(**{**TINY, **more})


def losses(watched) -> list[float]:
    return [line["loss"] for line in log.read(watched.folder) if "loss" in line]


@pytest.fixture(scope="module")
def alone(watch, tmp_path_factory):
    """Three steps with none of the options."""
    return watch(options(), tmp_path_factory.mktemp("alone"))


def residual_bytes(experiment) -> int:
    """What an edge keeps from its way there to its way back."""
    parts = experiment.parts(0)
    [batch, *_] = next(iter(parts.train.epoch(0, micro=1)))
    made = parts.params, parts.state, model_inputs(batch)
    held = jax.eval_shape(parts.algorithm.init, *made)[0]
    at = At(jax.random.key(0), *(np.int32(0),) * 3)
    hop = parts.algorithm.hops(True)[0]
    live = jax.eval_shape(hop.edge, held, {}, tick_batch(batch, 8), None, at)[1]
    return device_bytes(live["residuals/0"])


def test_what_is_computed_again_is_not_kept_and_changes_nothing(alone, watch, tmp_path):
    again = options(recompute="full")
    found = losses(watch(again, tmp_path))
    assert len(found) == 3
    np.testing.assert_allclose(found, losses(alone), rtol=1e-6)
    kept = [
        residual_bytes(options(recompute=text)) for text in ("full", "dots", "none")
    ]
    assert kept[0] < kept[1] < kept[2] and 3 * kept[0] < kept[2]


@pytest.mark.parametrize(
    ("precision", "more"),
    [pytest.param("bfloat16", 0, marks=pytest.mark.slow), ("mixed", 4)],
)
def test_kernels_of_16_bits_learn_as_those_of_32(
    precision, more, alone, watch, tmp_path
):
    """2 bytes of a number and 8 of its moments; 4 more where a copy is kept."""
    made = watch(options(precision=precision), tmp_path)
    np.testing.assert_allclose(losses(made), losses(alone), rtol=5e-3)
    for held in (made.end.edge, made.end.slot):
        params, state = flat(held["params"]), flat(held["opt"])
        kernels = {k: a for k, a in params.items() if k.endswith("kernel")}
        assert {a.dtype.name for a in kernels.values()} == {"bfloat16"}
        assert {params[k].dtype.name for k in params.keys() - kernels} == {"float32"}
        for name, kernel in kernels.items():
            own = [a for k, a in state.items() if k.endswith(name)]
            assert sum(a.nbytes for a in own) == (8 + more) * kernel.size
    halved = sum(
        a.size for k, a in flat(alone.end.edge["params"]).items() if "kernel" in k
    )
    sent = [one.summary["bytes_setup"] for one in (alone, made)]
    assert sent[0] - sent[1] == 2 * halved


def test_each_seed_rounds_by_a_chance_of_its_own():
    params = {"dense": {"kernel": jnp.ones((64, 64), jnp.bfloat16)}}

    def step(seed):
        tx = options(precision="bfloat16").widened(optax.sgd(1e-3), seed)
        return tx.update(params, tx.init(params), params)[0]["dense"]["kernel"]

    one, again, other = step(0), step(0), step(1)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.slow
def test_statistics_of_kfac_come_from_what_is_computed_again(watch, tmp_path):
    given = dict(optimizer="kfac", kfac_layers=".*/conv/kernel|head/classifier/kernel")
    first, again = (
        losses(watch(options(**given, recompute=text), tmp_path / text))
        for text in ("none", "full")
    )
    np.testing.assert_allclose(again, first, rtol=1e-5)


@pytest.mark.slow
def test_a_run_with_all_of_them_goes_on_where_it_stopped(watch, tmp_path, power_cut):
    """To the bit on the same mesh; on another as near as sums in another order are."""
    every = dict(recompute="full", precision="mixed", checkpoint_every=2, limit=32)
    home = options(mesh="data=8", zero=3, offload=True, **every)
    other = options(mesh="data=2,tensor=4", zero=1, **every)
    whole = watch(home, tmp_path / "whole")
    ends = []
    for name, then in (("same", home), ("other", other)):
        with power_cut(4):
            watch(home, tmp_path / name)
        ends.append(watch(then, tmp_path / name))
    same, moved = ends
    jax.tree.map(np.testing.assert_array_equal, same.end, whole.end)
    assert losses(same) == losses(whole) and len(losses(whole)) == 4
    np.testing.assert_allclose(losses(moved), losses(whole), rtol=1e-5)
    assert losses(moved)[:2] == losses(whole)[:2]


@pytest.mark.slow
@pytest.mark.real("minilm", "stsb")
def test_minilm_by_every_stage_is_minilm_on_one_device(tmp_path):
    """Four steps of dropout and of a norm over both parties."""
    short = dict(batch_size=8, max_length=32, steps=4, recompute="none", warmup=0.0)
    config = dataclasses.replace(flags.load(CONFIG), **short)
    want = None
    for zero in (None, 0, 1, 2, 3):
        made = (
            config.unsplit() if zero is None else dataclasses.replace(config, zero=zero)
        )
        run = open_run(made, 0, tmp_path / str(zero))
        state, found = run.state, []
        for batches in list(run.parts.train.epoch(0))[:4]:
            state, metrics = run.driver.step(state, [tick_batch(batches[0], 8)])
            found.append(float(metrics["loss"]))
        if zero is None:
            want = found
            continue
        np.testing.assert_allclose(found, want, rtol=1e-5)
        for name in ("params", "opt"):
            leaves = [a for a in jax.tree.leaves(state.slot[name]) if a.ndim]
            parts = 8 if zero >= FROM[name] else 1
            assert device_bytes(leaves) * parts == sum(a.nbytes for a in leaves)


def test_where_arrays_lie_is_no_part_of_what_a_run_is():
    """So an edge need not know of it; what parameters are kept in it must."""
    placed = Finetune(mesh="data=8", zero=3, recompute="dots", offload=True)
    placed.validate()
    assert placed.identity(0) == Finetune().identity(0)
    assert "precision" not in Finetune().identity(0)
    assert Finetune(precision="mixed").identity(0)["precision"] == "mixed"


def test_a_run_without_a_cut_leaves_away_what_a_mesh_is_for():
    whole = Finetune(mesh="data=8", zero=3, offload=True, recompute="full").unsplit()
    whole.validate()
    assert (whole.mesh, whole.zero, whole.offload) == ("", 0, False)
    assert whole.recompute == "full"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(zero=1), "zero=1 is of a cloud on a mesh, and mesh is empty"),
        (dict(offload=True), "offload=True is of a cloud on a mesh"),
        (dict(zero=4, mesh="data=2"), "zero=4: a stage from 0 to 3"),
        (dict(zero=2, mesh="tensor=2"), "lies apart over 'data'"),
        (dict(zero=1, mesh="data=2,pipe=2"), "zero=1 on mesh='data=2,pipe=2'"),
        (dict(zero=1, mesh="data=2", mode="unsplit"), "with mode='unsplit'"),
        (dict(zero=1, mesh="data=2", optimizer="kfac"), "zero=1 with optimizer='kfac'"),
        (dict(precision="mixed", optimizer="kfac"), "'mixed' with optimizer='kfac'"),
        (dict(recompute="names"), "recompute='names': it must be one of"),
        (dict(precision="float16"), "precision='float16': it must be one of"),
    ],
)
def test_g_options_that_cannot_be_honoured(given, says):
    with pytest.raises(ValueError, match=says):
        Finetune(**given).validate()


def test_g_a_low_rank_is_not_one_of_16_bits():
    with pytest.raises(ValueError, match="low_rank=0.5 beside precision='mixed'"):
        options(low_rank=0.5, precision="mixed").validate()
