"""Models on fused kernels: the same parameters, the same function."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.stage import join
from splitjax.core.tree import spec_of
from splitjax.models.bert import bert
from splitjax.models.bert_config import BertConfig, from_json, to_json
from splitjax.models.decoder import decoder
from splitjax.models.decoder_config import DecoderConfig

SIZES = dict(vocab=50, width=16, heads=4, layers=2, ffn=24, positions=20)
SIZES |= dict(init_std=0.2, dropout=0.0, attention_dropout=0.0)
CONFIGS = {
    "bert": BertConfig(**SIZES, skipless=(1,)),
    "mpnet": BertConfig(**SIZES, family="mpnet", types=0, first_position=2, buckets=8),
    "gpt2": DecoderConfig(**SIZES, family="gpt2", kv_heads=4),
}


def _models(name, dtype=jnp.float32, **changes):
    """The stock model and the fused one."""
    make = decoder if name == "gpt2" else bert
    config = dataclasses.replace(CONFIGS[name], **changes)
    fused = dataclasses.replace(config, fused="xla")
    return [join(make(c, dtype=dtype)) for c in (config, fused)]


def _run(model, state, batch):
    """`(params, key or None) -> output`."""

    @jax.jit
    def run(params, key=None):
        y, _, _ = model.apply(params, state, batch, key=key, train=key is not None)
        return y["h"] if isinstance(y, dict) else y

    return run


def _loss(model, state, batch):
    """`(params, key or None) -> (loss, output), gradients`."""
    run = _run(model, state, batch)

    def loss(params, key=None):
        y = run(params, key)
        return jnp.square(y).mean(), y

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("name", [*CONFIGS])
def test_values_and_gradients_are_the_stock_models(name, batch, key):
    """At every token, padding and empty rows too."""
    stock, fused = _models(name)
    params, state = stock.init(key, spec_of(batch))
    again, _ = fused.init(key, spec_of(batch))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))
    # A bias of zero would not show whether it is added.
    params = jax.tree.map(lambda p: p + 0.05, params)
    (want, y), grads = _loss(stock, state, batch)(params)
    (got, x), own = _loss(fused, state, batch)(params)
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    # A key's bias has a gradient of zero, so what counts is the size of them all.
    top = max(float(jnp.abs(b).max()) for b in jax.tree.leaves(grads))
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * top)


@pytest.mark.parametrize("name", [*CONFIGS])
def test_half_precision(name, batch, key):
    stock, fused = _models(name, jnp.bfloat16)
    params, state = stock.init(key, spec_of(batch))
    y = _run(stock, state, batch)(params)
    x = _run(fused, state, batch)(params)
    assert x.dtype == y.dtype
    real = np.asarray(batch["mask"])
    x, y = (np.asarray(a, np.float32)[real] for a in (x, y))
    # Each of some ten roundings of 2^-9 may fall to the other side.
    np.testing.assert_allclose(x, y, atol=2e-2 * np.abs(y).max())


@pytest.mark.parametrize("place", [1, 2], ids=["attention", "ffn"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_dropout(name, place, batch, key):
    """One fused stage alone: it follows the key, and gradients stay finite."""
    config = dataclasses.replace(CONFIGS[name], dropout=0.5, fused="xla")
    stage = (decoder if name == "gpt2" else bert)(config)[place]
    x = {"h": jax.random.normal(key, (4, 7, 16)), "mask": batch["mask"]}
    params, state = stage.init(key, spec_of(x))
    run = _loss(stage, state, x)
    first, again, other = (run(params, jax.random.key(n)) for n in (0, 0, 1))
    still = _run(stage, state, x)(params)
    assert bool((first[0][1] == again[0][1]).all())
    for y in (still, other[0][1]):
        assert not bool((first[0][1] == y).all(-1).any())
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(first[1]))


def test_a_family_without_kernels_is_refused():
    with pytest.raises(ValueError, match="fused='xla' of the family 'llama'"):
        DecoderConfig(fused="xla")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=[*CONFIGS])
def test_another_way_is_refused(config):
    for wrong in (True, "pallas"):
        with pytest.raises(ValueError, match=f"fused={wrong!r}: expected one of"):
            dataclasses.replace(config, fused=wrong)


@pytest.mark.parametrize("name", [*CONFIGS])
def test_only_auto_may_be_a_pallas_program(name, batch, key, monkeypatch):
    """As traced on a machine whose default is a GPU: on a mesh XLA must see all."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    make = decoder if name == "gpt2" else bert
    texts = {}
    for fused in ("", "xla", "auto"):
        model = join(make(dataclasses.replace(CONFIGS[name], fused=fused)))
        params, state = jax.eval_shape(model.init, key, spec_of(batch))
        run = functools.partial(model.apply, key=None, train=False)
        texts[fused] = str(jax.make_jaxpr(run)(params, state, batch))
    found = {fused: text.count("pallas_call") for fused, text in texts.items()}
    assert found[""] == found["xla"] == 0
    # Embedding, two norms a layer and one besides, and what follows dense layers.
    names = {"embed", "layer_norm", "bias_act_dropout", "bias_dropout_skip"}
    assert found["auto"] > 0 and all(one in texts["auto"] for one in names)


def test_a_folder_does_not_say_whether_it_is_fused():
    config = dataclasses.replace(CONFIGS["bert"], fused="xla")
    assert from_json(to_json(config)) == CONFIGS["bert"]
