import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from splitjax.core.cut import cut
from splitjax.core.factor import factorize
from splitjax.core.stage import join
from splitjax.core.tree import spec_of, where
from splitjax.factors.low_rank import LowRank
from splitjax.models.decoder import decoder, head
from splitjax.models.decoder_config import DecoderConfig, from_json, to_json
from splitjax.models.export import save
from splitjax.models.folder import read_fields, read_tensors
from splitjax.models.pretrained import load, start

FAMILIES = ("gpt2", "llama")


def texts(arrays):
    return {
        "ids": jnp.asarray(arrays["input_ids"], jnp.int32),
        "mask": jnp.asarray(arrays["attention_mask"], bool),
    }


@functools.cache
def built(config, dtype=jnp.float32):
    return decoder(config, dtype=dtype)


@functools.cache
def compiled(stages, train=False):
    whole = join(stages)

    def apply(params, x, key):
        state = {stage.name: {} for stage in stages}
        return whole.apply(params, state, x, key=key, train=train)[0]

    return jax.jit(apply)


def run(stages, params, x, key=None):
    return compiled(stages, key is not None)(params, x, key)


@pytest.fixture(params=FAMILIES)
def model(request, reference, key):
    """Config, stages, parameters, input, what is real of it, the original's logits."""
    arrays, folder = reference(request.param)
    config = from_json(read_fields(folder))
    x = texts(arrays)
    params, _ = start(built(config), load(folder), key=key, spec=spec_of(x))
    real = np.asarray(x["mask"])
    return config, built(config), params, x, real, arrays["logits"]


def test_logits_are_those_of_the_original(model):
    _, stages, params, x, real, logits = model
    np.testing.assert_allclose(run(stages, params, x)[real], logits[real], atol=2e-5)


def test_padding_changes_nothing_at_real_tokens_at_either_end(model):
    _, stages, params, x, real, logits = model

    def moved(rows):
        lengths = real.sum(1)
        pairs = zip(np.asarray(rows), lengths, strict=True)
        return np.stack([np.roll(row, 12 - length) for row, length in pairs])

    other = {"ids": jnp.asarray(moved(x["ids"])), "mask": jnp.asarray(moved(real))}
    y = run(stages, params, other)
    np.testing.assert_allclose(y[moved(real)], logits[real], atol=2e-5)


def test_a_token_is_not_seen_by_those_before_it(model):
    _, stages, params, x, _, _ = model
    changed = {**x, "ids": x["ids"].at[0, 6].set(39)}
    one, two = run(stages, params, x)[0], run(stages, params, changed)[0]
    np.testing.assert_array_equal(one[:6], two[:6])
    assert (jnp.abs(one[6:] - two[6:]).max(-1) > 1e-4).all()


def test_a_folder_is_written_back_to_the_bit(model, reference, tmp_path):
    config, _, params, *_ = model
    _, source = reference(config.family)
    save(tmp_path, config, params, source=source)
    theirs, ours = read_tensors(source), read_tensors(tmp_path)
    assert set(theirs) == set(ours)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert from_json(read_fields(tmp_path)) == config
    loaded = load(source)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, load(tmp_path), loaded))


def test_a_tied_model_can_be_cut_once_its_head_has_a_copy(model, reference, key):
    config, stages, params, x, real, logits = model
    if config.tied:
        with pytest.raises(ValueError, match="tied leaf has one owner"):
            cut(stages, after="layer_0/attention")
        config = dataclasses.replace(config, tied=False)
        stages, loaded = built(config), load(reference("gpt2")[1], config)
        params, _ = start(stages, loaded, key=key, spec=spec_of(x))
    made = cut(stages, after=("layer_0/attention", "layer_1/ffn"))
    assert [len(part.stages) for part in made.segments] == [2, 3, 2]
    for part, own in zip(made.segments, made.partition(params), strict=True):
        x = run(part.stages, own, x)
    np.testing.assert_allclose(x[real], logits[real], atol=2e-5)


def test_every_kernel_and_table_may_be_a_factor(model):
    _, stages, params, x, real, logits = model

    def exact(leaf):
        eye = jnp.eye(leaf.shape[1])
        return LowRank(leaf, eye, eye)

    new = factorize(exact, params, where(".*/(kernel|embedding)"))

    def loss(params):
        y = compiled(stages)(params, x, None)
        return y.var(), y

    grad, y = jax.jit(jax.grad(loss, has_aux=True))(new)
    np.testing.assert_allclose(y[real], logits[real], atol=2e-5)
    kernel = grad["layer_0/ffn"]["wi"]["kernel"]
    assert isinstance(kernel, LowRank) and float(jnp.abs(kernel.v).max()) > 0


def test_bfloat16_computes_low_and_gives_logits_of_float32(model):
    config, _, params, x, real, logits = model
    y = run(built(config, jnp.bfloat16), params, x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y[real], logits[real], atol=0.2)
    assert np.abs(y[real] - logits[real]).max() > 1e-3


def test_dropout_follows_the_key(reference, key):
    arrays, folder = reference("gpt2")
    stages, x = built(from_json(read_fields(folder))), texts(arrays)
    params, _ = start(stages, load(folder), key=key, spec=spec_of(x))
    first = stages[:2]

    def draw(key):
        return run(first, params, x, key)["h"]

    assert jnp.array_equal(draw(key), draw(key))
    assert not jnp.array_equal(draw(key), draw(jax.random.key(9)))
    assert not jnp.array_equal(draw(key), run(first, params, x)["h"])


def test_fresh_parameters_serve_both_forms(key):
    sizes = dict(vocab=9, width=8, heads=4, layers=1, ffn=12, positions=8)
    ids = jnp.zeros((1, 3), jnp.int32)
    x = {"ids": ids, "mask": ids == 0}
    for family, kv in (("gpt2", 4), ("llama", 2)):
        for tied in (True, False):
            config = DecoderConfig(family, kv_heads=kv, tied=tied, **sizes)
            init = join(decoder(config)).init
            params, _ = jax.eval_shape(init, key, spec_of(x))
            assert ("out" in params["head"]) != tied
            assert ("bias" in params["layer_0/ffn"]["wi"]) == (family == "gpt2")


def test_old_names_and_buffers_are_read(reference, tmp_path):
    _, source = reference("gpt2")
    tensors = {
        k.removeprefix("transformer."): v
        for k, v in safetensors.numpy.load_file(source / "model.safetensors").items()
    }
    tensors["h.0.attn.bias"] = np.ones((1, 1, 24, 24), np.float32)
    tensors["h.1.attn.masked_bias"] = np.float32([-1e4])
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    new, old = load(tmp_path), load(source)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, new, old))


def test_what_does_not_fit_is_named(reference, tmp_path):
    _, source = reference("llama")
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    gone = "model.layers.1.mlp.up_proj.weight"
    kept = {k: v for k, v in tensors.items() if k != gone}
    safetensors.numpy.save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="missing tensors .*layers.1.mlp.up_proj"):
        load(tmp_path)
    more = tensors | {"model.layers.0.self_attn.q_proj.bias": np.ones(16, np.float32)}
    safetensors.numpy.save_file(more, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="unexpected tensors .*q_proj.bias"):
        load(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_config_round_trip_and_refusals(family, reference):
    _, folder = reference(family)
    fields = read_fields(folder)
    config = from_json(fields)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    bad = {
        "gpt2": {
            "activation_function": "relu",
            "scale_attn_by_inverse_layer_idx": True,
        },
        "llama": {"hidden_act": "gelu", "attention_bias": True, "head_dim": 5},
    }
    for name, value in bad[family].items():
        with pytest.raises(ValueError, match=f"{name} {value!r}; only"):
            from_json({**fields, name: value})
    with pytest.raises(ValueError, match="gptt.*did you mean 'gpt2'"):
        from_json({**fields, "model_type": "gptt"})
    if family == "llama":
        scaled = {"rope_type": "llama3", "rope_theta": 1e4}
        with pytest.raises(ValueError, match="rope_type 'llama3'"):
            from_json({**fields, "rope_parameters": scaled})
    else:
        with pytest.raises(ValueError, match="resid_pdrop 0.1 and embd_pdrop 0.3"):
            from_json({**fields, "embd_pdrop": 0.3})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"family": "gpt"}, "did you mean 'gpt2'"),
        ({"width": 10, "heads": 4}, "must divide"),
        ({"heads": 9, "kv_heads": 2}, "must divide"),
        ({"width": 9, "heads": 9, "kv_heads": 3}, "a head is 1 wide"),
        ({"family": "gpt2"}, "as many heads of keys"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**wrong)


def test_bad_input_is_refused(model):
    _, stages, params, x, _, _ = model
    long = {name: jnp.tile(leaf, (1, 3)) for name, leaf in x.items()}
    with pytest.raises(ValueError, match="36 tokens do not fit 24 positions"):
        run(stages, params, long)
    with pytest.raises(ValueError, match="mask is bool"):
        run(stages, params, {**x, "mask": x["mask"].astype(jnp.int32)})
    with pytest.raises(ValueError, match="ids and mask.*types"):
        run(stages, params, {**x, "types": x["ids"]})
    nan = run(stages, params, {**x, "ids": x["ids"].at[0, 0].set(40)})
    assert jnp.isnan(nan[0]).any() and jnp.isfinite(nan[1]).all()


def test_a_tied_head_reads_a_table_of_16_bits():
    x = {"h": jnp.ones((1, 3, 8)), "mask": jnp.ones((1, 3), bool)}
    table = {"embed": {"word": {"embedding": jnp.ones((9, 8), jnp.bfloat16)}}}
    made = head(DecoderConfig()).apply({}, {}, x, key=None, train=False, tied=table)[0]
    assert made.dtype == jnp.float32 and made.shape == (1, 3, 9)
