import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.stage import join
from splitjax.core.tree import spec_of, where
from splitjax.models.bert import FROZEN, bert
from splitjax.models.bert_config import BertConfig, from_json, to_json
from splitjax.models.relative_bias import buckets

REFERENCE = pathlib.Path(__file__).parent / "reference"


def start(config, batch, key, **kwargs):
    model = join(bert(config, **kwargs))
    spec = spec_of(batch)
    return model, *jax.jit(lambda key: model.init(key, spec))(key)


def apply(model, params, state, x, *, key, train):
    def run(params, state, x, key):
        return model.apply(params, state, x, key=key, train=train)[0]

    return jax.jit(run)(params, state, x, key)


def padded(batch, by):
    return {
        name: jnp.pad(leaf, ((0, 0), (0, by)), constant_values=leaf.dtype.type(0))
        for name, leaf in batch.items()
    }


def test_padding_changes_nothing_at_real_tokens(config, batch, key):
    model, params, state = start(config, batch, key)
    short = apply(model, params, state, batch, key=None, train=False)
    longer = apply(model, params, state, padded(batch, 5), key=None, train=False)
    real = np.asarray(batch["mask"])
    np.testing.assert_allclose(
        np.asarray(short["h"])[real], np.asarray(longer["h"])[:, :7][real], atol=1e-5
    )


def test_no_nan_anywhere_though_a_row_is_empty(config, batch, key):
    model, params, state = start(config, batch, key)

    def loss(params):
        y, _, _ = model.apply(params, state, batch, key=key, train=True)
        return jnp.square(y["h"]).sum()

    value, grad = jax.jit(jax.value_and_grad(loss))(params)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grad))


def test_dropout_follows_the_key_and_the_config(batch, key):
    config = BertConfig(vocab=50, width=8, heads=2, layers=1, ffn=8, positions=9)
    model, params, state = start(config, batch, key)

    def run(model, train, key=key):
        return apply(model, params, state, batch, key=key, train=train)["h"]

    assert jnp.array_equal(run(model, True), run(model, True))
    assert not jnp.array_equal(run(model, True), run(model, True, jax.random.key(5)))
    still = dataclasses.replace(config, dropout=0.0, attention_dropout=0.0)
    quiet = join(bert(still))
    assert jnp.array_equal(run(quiet, True), run(model, False, None))


def test_a_stage_draws_the_same_wherever_it_is_joined(config, batch, key):
    model, params, state = start(config, batch, key)
    whole = apply(model, params, state, batch, key=key, train=True)
    x, halves = batch, (model.stages[:3], model.stages[3:])
    for half in halves:
        x = apply(join(half), params, state, x, key=key, train=True)
    assert jnp.array_equal(x["h"], whole["h"])


def test_bfloat16_computes_low_and_keeps_parameters(config, batch, key):
    model, params, state = start(config, batch, key, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    low = apply(model, params, state, batch, key=key, train=True)
    assert low["h"].dtype == jnp.bfloat16
    low = apply(model, params, state, batch, key=None, train=False)
    exact = apply(join(bert(config)), params, state, batch, key=None, train=False)
    real = np.asarray(batch["mask"])
    np.testing.assert_allclose(
        np.asarray(low["h"], np.float32)[real], np.asarray(exact["h"])[real], atol=0.2
    )


def test_relative_bias_is_not_trained(batch, key):
    config = BertConfig(
        "mpnet", 50, 16, 4, 2, 24, 20, first_position=2, types=0, buckets=8
    )
    model, params, state = start(config, batch, key)

    def loss(params):
        y, _, _ = model.apply(params, state, batch, key=None, train=False)
        return y["h"][..., 0].sum()

    grad = jax.jit(jax.grad(loss))(params)
    frozen = where(FROZEN)(params)
    for zero, leaf in zip(jax.tree.leaves(frozen), jax.tree.leaves(grad), strict=True):
        assert not (zero and leaf.any())
    assert sum(jax.tree.leaves(frozen)) == 2


def test_buckets_are_symmetric_but_for_their_half():
    table = buckets(200, 32)
    assert table.max() == 31 and (table == 16).sum() == 0
    upper = np.triu_indices(200, 1)
    assert (table[upper] == table.T[upper] + 16).all()


def test_types_matter_and_default_to_zero(batch, key):
    config = BertConfig(vocab=50, width=8, heads=2, layers=1, ffn=8, positions=9)
    model, params, state = start(config, batch, key)

    def run(**extra):
        x = {**batch, **extra}
        return apply(model, params, state, x, key=None, train=False)["h"]

    ids = batch["ids"]
    assert jnp.array_equal(run(), run(types=jnp.zeros_like(ids)))
    assert not jnp.array_equal(run(), run(types=jnp.ones_like(ids)))


def test_bad_input_is_refused(config, batch, key):
    model, params, state = start(config, batch, key)

    def run(**extra):
        x = {**batch, **extra}
        return apply(model, params, state, x, key=None, train=False)

    with pytest.raises(ValueError, match="22 tokens .* truncate"):
        model.apply(params, state, padded(batch, 15), key=None, train=False)
    with pytest.raises(ValueError, match="mask is bool"):
        run(mask=jnp.ones((4, 7), jnp.int32))
    with pytest.raises(ValueError, match="lengths"):
        run(lengths=jnp.ones(4))
    with pytest.raises(ValueError, match="Array"):
        model.apply(params, state, batch["ids"], key=None, train=False)
    nan = run(ids=batch["ids"].at[0, 0].set(50))["h"]
    assert jnp.isnan(nan[0]).any() and jnp.isfinite(nan[1]).all()


def test_config_round_trip_and_refusals(config):
    same = {"dropout", "attention_dropout", "eps", "skipless"}
    assert same <= {field.name for field in dataclasses.fields(config)}
    marked = dataclasses.replace(config, skipless=(1,))
    assert from_json(to_json(marked)) == marked
    fields = to_json(config)
    with pytest.raises(ValueError, match="mpnett.*did you mean 'mpnet'"):
        from_json({**fields, "model_type": "mpnett"})
    with pytest.raises(ValueError, match="relu"):
        from_json({**fields, "hidden_act": "relu"})
    with pytest.raises(ValueError, match="no multiple of 3"):
        dataclasses.replace(config, heads=3)


def test_buckets_are_those_of_hugging_face():
    theirs = np.load(REFERENCE / "mpnet.npz")["buckets"]
    table = buckets(601, 32)
    assert np.array_equal(table[0], theirs[600:])
    assert np.array_equal(table[600], theirs[:601])
