"""Compressing a tiny trained model: what the table says is what is."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.core.factor import is_factor, materialize
from splitjax.core.tree import path_name
from splitjax.data.examples import examples_of
from splitjax.factors.mpo import Mpo
from splitjax.factors.mpo_plan import plan_keeping
from splitjax.factors.smartdeal import SmartDeal
from splitjax.factors.smartdeal_pack import pack, stored_bytes
from splitjax.runtime.local import Local
from splitjax.studies.compress import compress as compressing
from splitjax.studies.compress.compress import compress, measured, params_of
from splitjax.studies.compress.methods import coded, fitted
from splitjax.studies.compress.options import Compress, Tuned
from splitjax.studies.compress.table import plot, table
from splitjax.studies.compress.tuning import TUNES
from splitjax.train.finetune import Finetune
from splitjax.train.runs import open_trained, predict

OPTIONS = dict(batch_size=8, max_length=8, epochs=1, shares=(0.5,), fisher_examples=20)
KERNELS = {(16, 16): (8, 4), (16, 32): (2, 5), (32, 16): (2, 5)}  # count, rank


@pytest.fixture(scope="module")
def experiment(tiny_model, tiny_task):
    given = dict(task=str(tiny_task), model=str(tiny_model))
    return Compress(**given, **OPTIONS)


@pytest.fixture(scope="module")
def made(experiment, tmp_path_factory):
    """Its rows, the folder, and the dense parameters."""
    folder = tmp_path_factory.mktemp("compress")
    rows = compress(experiment, 0, folder, progress=False)
    run = open_trained(experiment.dense(), 0, folder / "dense")
    return rows, folder, params_of(run)


@pytest.fixture(scope="module")
def run(made, experiment):
    return open_trained(experiment.dense(), 0, made[1] / "dense")


def kernel_weights(params, rest):
    """A Fisher of the kernels that are compressed: 1 in the first row of each."""

    def one(path, leaf):
        chosen = re.fullmatch(Compress().where, path_name(path))
        return jnp.full_like(leaf, rest).at[0].set(1.0) if chosen else None

    return jax.tree_util.tree_map_with_path(one, params)


def test_each_point_has_its_costs(made):
    rows, folder, _ = made
    assert [row["name"] for row in rows] == [
        *("dense", "svd 50%", "fwsvd 50%", "wsvd 50%")
    ]
    assert json.loads((folder / "compress.json").read_text()) == rows
    saved = sum(
        count * (m * n - rank * (m + n)) for (m, n), (count, rank) in KERNELS.items()
    )
    dense = rows[0]
    for row in rows[1:]:
        assert row["parameters"] == dense["parameters"] - saved
        assert row["bytes"] == 4 * row["parameters"]
        assert row["flops"] < 0.8 * dense["flops"]
        assert row["before"] == dense["value"] and row["unit"] == "dev accuracy"


def test_each_is_best_by_its_own_measure(made):
    _, plain, by_rows, by_entries = made[0]
    assert plain["error"] <= min(by_rows["error"], by_entries["error"])
    assert by_entries["weighted_error"] < by_rows["weighted_error"]
    assert by_entries["weighted_error"] < plain["weighted_error"] < 1


def test_the_fisher_is_of_single_examples(experiment, run):
    """Against one gradient after the other, of the loss as training has it."""
    found = measured(experiment, run)
    chosen = [leaf for leaf in jax.tree.leaves(found) if leaf is not None]
    assert len(chosen) == sum(count for count, _ in KERNELS.values())
    params, split = params_of(run), run.parts.split
    name, total, count = "layer_1/ffn", 0.0, 0

    def loss(kernel, example):
        wi = {**params[name]["wi"], "kernel": kernel}
        whole = {**params, name: {**params[name], "wi": wi}}
        visit = split.forward(
            0,
            whole,
            run.state.edge["state/0"],
            example["x"],
            links=(),
            key=None,
            train=False,
            target=example["target"],
        )
        return visit.loss

    gradient = jax.jit(jax.grad(loss))
    for [batch] in run.parts.train.epoch(0):
        examples, valid = examples_of(batch)
        for row in np.flatnonzero(valid)[: experiment.fisher_examples - count]:
            one = jax.tree.map(lambda leaf, row=row: leaf[row], examples)
            total = total + np.square(gradient(params[name]["wi"]["kernel"], one))
            count += 1
    assert count == experiment.fisher_examples
    want = total / count
    assert np.abs(found[name]["wi"]["kernel"] - want).max() < 1e-4 * want.max()


def test_a_score_is_that_of_the_factored_model(experiment, run, made):
    """It is computed with dense kernels; the factors themselves say the same."""
    params = params_of(run)
    new = fitted(experiment, params, None, "svd", 0.5)
    assert is_factor(new["layer_0/ffn"]["wi"]["kernel"])
    assert new["embed"] is not None and jax.tree.all(
        jax.tree.map(lambda a, b: a is b, new["embed"], params["embed"])
    )
    model, state = run.parts.split.cut.model, run.state.edge["state/0"]
    found = predict(
        compressing.with_params(run, materialize(new)), run.parts.evals["dev"]
    )[0]
    outs = []
    for [batch] in run.parts.evals["dev"].epoch(0, shuffle=False):
        x = {k: jnp.asarray(batch[k]) for k in ("ids", "mask", "types") if k in batch}
        y = model.apply(new, state, x, key=None, train=False)[0]
        outs.append(y[: batch["n_valid"]])
    assert np.abs(np.concatenate(outs) - found).max() < 1e-4
    assert compressing.score(run, new)["dev"] == made[0][1]["value"]


@pytest.mark.slow
def test_what_was_compressed_trains_on(made, experiment, tmp_path):
    """From a run that is there already."""
    given = dict(tune="factors", factors=("svd",), trained=str(made[1] / "dense"))
    one = dataclasses.replace(experiment, **given)
    first, row = compress(one, 0, tmp_path, progress=False)
    assert not (tmp_path / "dense").exists() and first["tuned"] is None
    old = made[0][1]
    assert row["weighted_error"] is None  # no Fisher was measured
    names = ("parameters", "bytes", "flops", "error", "before", "value")
    assert [row[name] for name in names] == [old[name] for name in names]
    summary = json.loads((tmp_path / "factors_svd_0.5/summary.json").read_text())
    assert summary["metric"] == row["tuned"] and summary["steps"] == 3
    assert summary["before"]["dev"] == row["value"]
    found = table([first, row]).splitlines()[-1]
    assert f"{row['tuned']:.4f}" in found
    start, other = (one.tuned(name, 0.5, {}) for name in ("svd", "fwsvd"))
    assert isinstance(start, Tuned) and start.learning_rate == one.tune_rate
    assert start.identity(0) != other.identity(0)


def test_cores_and_codes_tell_what_they_hold(made, experiment, run, tmp_path):
    """An MPO its cores, SmartDeal its packed bytes; each scored as it is."""
    given = dict(factors=("mpo", "smartdeal"), trained=str(made[1] / "dense"))
    one = dataclasses.replace(experiment, **given)
    dense, cores, codes = compress(one, 0, tmp_path, progress=False)
    saved = sum(
        count * (m * n - plan_keeping(0.5, m, n).parameters)
        for (m, n), (count, _) in KERNELS.items()
    )
    assert cores["parameters"] == dense["parameters"] - saved
    assert cores["bytes"] == 4 * cores["parameters"] < dense["bytes"]
    new = fitted(one, made[2], None, "smartdeal", 0.5)
    nodes = jax.tree.leaves(new, is_leaf=is_factor)
    nodes = [node for node in nodes if isinstance(node, SmartDeal)]
    size = sum(count * m * n for (m, n), (count, _) in KERNELS.items())
    packed = sum(map(len, jax.tree.leaves(pack(nodes))))
    assert codes["bytes"] == dense["bytes"] - 4 * size + packed
    kept = sum(int(jnp.count_nonzero(node.codes)) for node in nodes)
    bases = sum(node.basis.size for node in nodes)
    assert codes["parameters"] == dense["parameters"] - size + kept + bases
    # A column of a slice that would be empty keeps a few more.
    assert 0.45 * size < kept < 0.65 * size
    for row in (cores, codes):
        assert 0 < row["error"] < 1 and row["weighted_error"] is None
        assert row["flops"] > 0 and row["coded"] is None
    assert codes["value"] == compressing.score(run, new)["dev"]


def test_a_quantized_model_has_its_numbers_in_fewer_bytes(
    made, experiment, run, tmp_path
):
    """Half the bytes are enough for int8."""
    given = dict(factors=("quantized",), trained=str(made[1] / "dense"))
    one = dataclasses.replace(experiment, **given)
    dense, small = compress(one, 0, tmp_path, progress=False)
    size = sum(count * m * n for (m, n), (count, _) in KERNELS.items())
    scales = sum(count * n for (_, n), (count, _) in KERNELS.items())  # one a column
    assert small["bytes"] == dense["bytes"] - 4 * size + size + 4 * scales
    assert small["parameters"] == dense["parameters"] + scales
    assert 0 < small["error"] < 0.01 and small["flops"] >= dense["flops"]
    new = fitted(one, made[2], None, "quantized", 0.5)
    assert small["value"] == compressing.score(run, new)["dev"]


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["lrpet", "lrpet_rows"])
def test_lrpet_ends_at_the_rank_it_began_with(tune, made, experiment, tmp_path):
    """It trains dense kernels; what is scored are factors again, and all is in them.

    SmartDeal comes on top of what was trained: the chain is one command.
    """
    given = dict(tune=tune, tune_every=2, tune_steps=3, tune_rate=1e-3, codes=0.5)
    given |= dict(factors=("svd",), trained=str(made[1] / "dense"))
    one = dataclasses.replace(experiment, **given)
    _, row = compress(one, 0, tmp_path, progress=False)
    place = tmp_path / f"{tune}_svd_0.5"
    ones = kernel_weights(made[2], rest=1.0)
    end = params_of(open_trained(one.tuned("svd", 0.5, made[2], ones), 0, place))
    start = fitted(experiment, made[2], None, "svd", 0.5)
    # Rows that are weighed are divided again: rounding grows with their unlikeness.
    moved, least = 0, 1e-5 if tune == "lrpet" else 1e-3
    for stage, part in (("layer_0/ffn", "wi"), ("layer_1/attention", "key")):
        kernel = end[stage][part]["kernel"]
        _, rank = KERNELS[kernel.shape]
        values = np.linalg.svd(kernel, compute_uv=False)
        assert values[rank] < least * values[0] < values[rank - 1]
        moved += np.abs(kernel - start[stage][part]["kernel"].materialize()).max()
    assert moved > 1e-4
    summary = json.loads((place / "summary.json").read_text())
    assert summary["metric"] == row["tuned"]
    assert row["parameters"] == made[0][1]["parameters"]
    top = coded(one, fitted(one, end, None, "svd", 0.5), 0.5)
    assert row["coded_bytes"] == stored_bytes(top) < row["bytes"]
    run = open_trained(experiment.dense(), 0, made[1] / "dense")
    assert row["coded"] == compressing.score(run, top)["dev"]
    assert f"{row['coded']:.4f}" in table([row]).splitlines()[-1]


@pytest.mark.slow
def test_cores_train_on_and_are_encoded(made, experiment, tmp_path):
    """Each core moves by itself; what is encoded then are the cores."""
    given = dict(factors=("mpo",), tune="factors", tune_rate=1e-3, codes=1.0)
    one = dataclasses.replace(experiment, **given, trained=str(made[1] / "dense"))
    _, row = compress(one, 0, tmp_path, progress=False)
    begin = fitted(one, made[2], None, "mpo", 0.5)
    place = tmp_path / "factors_mpo_0.5"
    end = params_of(open_trained(one.tuned("mpo", 0.5, begin), 0, place))
    wi, start = (tree["layer_1/ffn"]["wi"]["kernel"] for tree in (end, begin))
    assert isinstance(wi, Mpo)
    assert all(
        jnp.abs(a - b).max() > 1e-5
        for a, b in zip(jax.tree.leaves(wi), jax.tree.leaves(start), strict=True)
    )
    # Of cores as small as these the codes take more than they save.
    assert row["coded_bytes"] == stored_bytes(coded(one, end, 1.0)) != row["bytes"]


def test_rows_of_the_fisher_decide_what_is_kept(experiment, made):
    """A kernel's first row alone matters: it is what a projection leaves as it is."""
    one = dataclasses.replace(experiment, tune_every=1)
    weights = kernel_weights(made[2], rest=1e-9)
    kernel = made[2]["layer_0/ffn"]["wi"]["kernel"]
    lost = {}
    for tune in ("lrpet", "lrpet_rows"):
        run = dataclasses.replace(one, tune=tune).tuned("svd", 0.5, made[2], weights)
        params = {"0": run.begin}
        tx = TUNES[tune].tx(run, optax.identity(), 1)
        still = jax.tree.map(jnp.zeros_like, params)
        made_of, _ = tx.update(still, tx.init(params), params, step=0)
        moved = made_of["0"]["layer_0/ffn"]["wi"]["kernel"]
        lost[tune] = float(jnp.linalg.norm(moved[0]) / jnp.linalg.norm(kernel[0]))
    assert lost["lrpet_rows"] < 0.2 * lost["lrpet"]


def test_the_table_and_the_picture(made, tmp_path):
    rows = made[0]
    lines = table(rows).splitlines()
    assert lines[0] == "dev accuracy" and len(lines) == 4 + len(rows)
    assert "wsvd 50%" in lines[-1] and f"{rows[-1]['value']:.4f}" in lines[-1]
    plot(rows, tmp_path / "some.png")
    assert (tmp_path / "some.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(mode="split"), "mode='split': it must be one of"),
        (dict(factors=("pca",)), "factors='pca': .*'svd', 'fwsvd', 'wsvd'"),
        (dict(shares=(0.0,)), r"shares has 0.0: each is from 0 to 1"),
        (dict(shares=()), "one thing each at least"),
        (dict(tune="more"), "tune='more'"),
        (dict(solver="newton"), "solver='newton'"),
        (dict(fisher_examples=0), "fisher_examples=0"),
        (dict(codes=1.5), "codes=1.5: a share from 0 to 1"),
        (dict(codes=0.5, factors=("svd", "smartdeal")), "is coded already"),
        (dict(tune="factors", factors=("smartdeal",)), "Codes come last"),
        (dict(tune="lrpet", factors=("quantized",)), "Codes come last"),
        (dict(codes=0.5, factors=("quantized",)), "is coded already"),
        (dict(tune="lrpet", factors=("mpo",)), "product, and that makes cores"),
    ],
)
def test_bad_options_are_told(more, message, experiment):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(experiment, **more).validate()


def test_a_wrong_split_is_told_before_anything_is_trained(experiment, tmp_path):
    one = dataclasses.replace(experiment, score_on=("tset",))
    with pytest.raises(ValueError, match="score_on='tset': it must be one of .'dev'"):
        compress(one, 0, tmp_path / "work")
    assert not (tmp_path / "work").exists()
    dataclasses.replace(experiment, task="stsb", score_on=("test",)).validate()


def test_a_run_that_is_not_there_is_told(experiment, tmp_path):
    one = dataclasses.replace(experiment, trained=str(tmp_path))
    with pytest.raises(ValueError, match="holds no finished run"):
        compress(one, 0, tmp_path / "work")


def test_a_point_that_fails_closes_the_run(experiment, made, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(Local, "close", lambda driver: closed.append(driver))

    def fails(*_, **__):
        raise RuntimeError("no room")

    monkeypatch.setattr(compressing, "compressed", fails)
    one = dataclasses.replace(experiment, trained=str(made[1] / "dense"))
    with pytest.raises(RuntimeError, match="no room"):
        compress(one, 0, tmp_path, progress=False)
    assert len(closed) == 1


def test_the_dense_run_is_the_plain_one(experiment):
    """So that a finished run of it serves, whatever is compressed then."""
    plain = Finetune(
        **{f.name: getattr(experiment, f.name) for f in dataclasses.fields(Finetune)}
    )
    assert experiment.dense().identity(3) == plain.identity(3)
    other = dataclasses.replace(experiment, shares=(0.1,), iterations=9)
    assert other.dense().identity(3) == plain.identity(3)
