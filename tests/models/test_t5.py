import dataclasses
import functools

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
from splitjax.models.bert import FROZEN
from splitjax.models.export import save
from splitjax.models.folder import read_fields, read_tensors
from splitjax.models.pretrained import load, start
from splitjax.models.relative_bias import buckets
from splitjax.models.t5 import decoder_embed, head, t5
from splitjax.models.t5_config import T5Config, from_json, to_json

FORMS = ("t5", "t5_gated")
# Of logits up to 3.4: a CPU of narrower vectors adds up in another order (2.8e-5).
ATOL = 3e-5


@functools.cache
def built(config):
    return t5(config)


@functools.cache
def compiled(stages):
    whole, state = join(stages), {stage.name: {} for stage in stages}
    return jax.jit(lambda p, x: whole.apply(p, state, x, key=None, train=False)[0])


def run(stages, params, x):
    return compiled(stages)(params, x)


@pytest.fixture(params=FORMS)
def model(request, reference, key):
    """Config, stages, parameters, input, what is real, the original's logits."""
    arrays, folder = reference(request.param)
    config = from_json(read_fields(folder))
    x = {
        "ids": jnp.asarray(arrays["input_ids"], jnp.int32),
        "mask": jnp.asarray(arrays["attention_mask"], bool),
        "decoder_ids": jnp.asarray(arrays["decoder_input_ids"], jnp.int32),
        "decoder_mask": jnp.asarray(arrays["decoder_attention_mask"], bool),
    }
    params, _ = start(built(config), load(folder), key=key, spec=spec_of(x))
    real = np.asarray(x["decoder_mask"])
    return config, built(config), params, x, real, arrays["logits"], folder


def test_logits_are_those_of_the_original(model):
    config, stages, params, x, real, logits, _ = model
    assert config.tied == config.scaled != config.gated
    np.testing.assert_allclose(run(stages, params, x)[real], logits[real], atol=ATOL)


def test_a_folder_is_written_back_to_the_bit(model, tmp_path):
    config, _, params, *_, source = model
    save(tmp_path, config, params)
    theirs, ours = read_tensors(source), read_tensors(tmp_path)
    assert set(theirs) == set(ours)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert from_json(read_fields(tmp_path)) == config


def test_a_cut_between_the_stacks_needs_a_copy_of_the_table(model, key):
    config, stages, params, x, real, logits, folder = model
    with pytest.raises(ValueError, match="tied leaf has one owner"):
        cut(stages, after="encoder")
    parted = dataclasses.replace(config, shared=False)
    stages = built(parted)
    params, _ = start(stages, load(folder, parted), key=key, spec=spec_of(x))
    made = cut(stages, after="encoder")
    assert made.segments[1].stages[0].name == "decoder/embed"
    for part, own in zip(made.segments, made.partition(params), strict=True):
        x = run(part.stages, own, x)
    np.testing.assert_allclose(x[real], logits[real], atol=ATOL)


@pytest.mark.parametrize("model", ["t5_gated"], indirect=True)
def test_kernels_may_be_factors_and_tables_of_positions_stay(model):
    _, stages, params, x, real, logits, _ = model
    eye = lambda leaf: jnp.eye(leaf.shape[1])  # noqa: E731
    exact = lambda leaf: LowRank(leaf, eye(leaf), eye(leaf))  # noqa: E731
    new = factorize(exact, params, where(".*/kernel|.*/word/embedding"))

    assert isinstance(new["decoder/layer_0/cross"]["key"]["kernel"], LowRank)
    np.testing.assert_allclose(run(stages, new, x)[real], logits[real], atol=ATOL)
    assert sum(jax.tree.leaves(where(FROZEN)(new))) == 5


@pytest.mark.parametrize("shared", [True, False])
def test_the_decoder_drops_some_of_its_embeddings_by_the_key(shared, key):
    stage = decoder_embed(T5Config(9, 64, 3, 2, 1, 1, 12, shared=shared, dropout=0.4))
    word = {"word": {"embedding": jnp.ones((9, 64))}}
    ids = jnp.zeros((2, 4), jnp.int32)
    x = {"h": 0, "mask": 0, "decoder_ids": ids, "decoder_mask": ids == 0}
    extra = {"tied": {"encoder/embed": word}} if shared else {}

    def apply(key, train=True):
        return stage.apply(word, {}, x, key=key, train=train, **extra)[0]["h"]

    assert jnp.array_equal(apply(key), apply(key))
    assert not jnp.array_equal(apply(key), apply(jax.random.key(4)))
    assert set(np.unique(apply(key).round(4)).tolist()) == {0.0, np.float32(1.6667)}
    assert float(apply(key).mean()) == pytest.approx(1, abs=0.15)
    assert (apply(None, train=False) == 1).all()
    with pytest.raises(ValueError, match="training needs a key"):
        apply(None)


def test_fresh_parameters(key):
    config = T5Config(9, 8, 3, 2, 1, 1, 12, shared=False, gated=True)
    ids = jnp.zeros((2, 4), jnp.int32)
    x = {"ids": ids, "mask": ids == 0, "decoder_ids": ids, "decoder_mask": ids == 0}
    params, _ = jax.eval_shape(join(t5(config)).init, key, spec_of(x))
    assert params["decoder/embed"]["word"]["embedding"].shape == (9, 8)
    assert params["decoder/layer_0/cross"]["out"]["kernel"].shape == (6, 8)
    assert params["encoder/layer_0/ffn"]["gate"]["kernel"].shape == (8, 12)
    assert params["head"] == {}


def test_a_head_of_its_own_is_not_passed_over(reference, tmp_path):
    _, source = reference("t5")
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    path = tmp_path / "model.safetensors"
    copies = {
        f"{s}.embed_tokens.weight": tensors["shared.weight"]
        for s in ("encoder", "decoder")
    }
    copies["lm_head.weight"] = tensors["shared.weight"]
    safetensors.numpy.save_file(tensors | copies, path)
    new, old = load(tmp_path), load(source)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, new, old))
    other = {"lm_head.weight": tensors["shared.weight"] + 1}
    safetensors.numpy.save_file(tensors | other, path)
    with pytest.raises(ValueError, match="head that differs .*`tied=False`"):
        load(tmp_path)
    config = dataclasses.replace(from_json(read_fields(source)), tied=False)
    head = load(tmp_path, config)["head"]["out"]["kernel"]
    assert jnp.array_equal(head, other["lm_head.weight"].T)


def test_buckets_of_a_decoder_are_for_what_came_before():
    table = buckets(400, 32, causal=True)
    assert (table[np.triu_indices(400)] == 0).all() and table.max() == 31
    assert table[20, :21][::-1].tolist() == [*range(16), 16, 16, 16, 17, 17]
    near = buckets(60, 8, 20, True)[-1][::-1]
    assert near[:4].tolist() == [0, 1, 2, 3] and (near[20:] == 7).all()


def test_bad_input_is_refused(model):
    _, stages, params, x, *_, folder = model
    fields = read_fields(folder)
    with pytest.raises(ValueError, match="'gated-silu'; built here.*gated-gelu"):
        from_json({**fields, "feed_forward_proj": "gated-silu"})
    with pytest.raises(ValueError, match="model_type 'mt5'"):
        from_json({**fields, "model_type": "mt5"})
    assert from_json(to_json(T5Config(gated=True))) == T5Config(gated=True)
    with pytest.raises(ValueError, match="T5 reads a dict .*decoder_ids.*: .'ids'"):
        run(stages, params, {"ids": x["ids"], "mask": x["mask"]})
    with pytest.raises(ValueError, match="decoder_mask is bool"):
        run(stages, params, {**x, "decoder_mask": x["decoder_ids"]})
    with pytest.raises(ValueError, match="3 texts .* 2 for the decoder"):
        fewer = {n: x[n][:2] for n in ("decoder_ids", "decoder_mask")}
        run(stages, params, {**x, **fewer})


def test_a_tied_head_reads_a_table_of_16_bits():
    config = T5Config(vocab=9, width=8)
    table = {"word": {"embedding": jnp.ones((9, 8), jnp.bfloat16)}}
    stage, x = head(config), {"h": jnp.ones((1, 3, 8))}
    tied = dict.fromkeys(stage.reads, table)
    made = stage.apply({}, {}, x, key=None, train=False, tied=tied)[0]
    assert made.dtype == jnp.float32 and made.shape == (1, 3, 9)
