import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from splitjax.core.stage import join
from splitjax.core.tree import spec_of
from splitjax.models import heads
from splitjax.models.bert import bert
from splitjax.models.bert_config import to_json
from splitjax.models.bert_table import entries
from splitjax.models.export import save
from splitjax.models.folder import read_config, read_tensors
from splitjax.models.pretrained import load, start
from splitjax.models.squeeze import Squeeze

REFERENCE = pathlib.Path(__file__).parent / "reference"


def write(folder, config, *, prefix="", drop=(), **extra):
    """A folder as Hugging Face writes it, of random weights."""
    rng = np.random.default_rng(0)
    d, f = config.width, config.ffn
    tensors = {}
    for name in dict.fromkeys(entry.tensor for entry in entries(config)):
        shape = (d,)
        if name.endswith("embeddings.weight"):
            kind = name.split(".")[1].split("_")[0]
            rows = {"word": config.vocab, "position": config.positions, "token": 2}
            shape = (rows[kind], d)
        elif "relative" in name:
            shape = (config.buckets, config.heads)
        elif "intermediate" in name:
            shape = (f, d) if name.endswith("weight") else (f,)
        elif name.endswith("weight") and "LayerNorm" not in name:
            shape = (d, f) if ".output.dense" in name and "att" not in name else (d, d)
        tensors[name] = rng.normal(size=shape).astype(np.float32)
    tensors = {prefix + k: v for k, v in tensors.items() if k not in drop}
    tensors |= {name.replace("__", "."): array for name, array in extra.items()}
    pathlib.Path(folder, "config.json").write_text(json.dumps(to_json(config)))
    pathlib.Path(folder, "tokenizer.json").write_text("{}")
    safetensors.numpy.save_file(tensors, pathlib.Path(folder, "model.safetensors"))
    return tensors


def begin(config, params, batch, key, head=(), **kwargs):
    stages = bert(config, head, **kwargs)
    return stages, *start(stages, params, key=key, spec=spec_of(batch))


def test_round_trip_to_the_bit(config, tmp_path):
    ids = {"embeddings__position_ids": np.arange(20)[None]}
    tensors = write(tmp_path, config, **ids)
    assert read_config(tmp_path) == config
    params = load(tmp_path)
    save(tmp_path / "new", config, params, source=tmp_path)
    again = read_tensors(tmp_path / "new")
    assert set(again) == set(tensors) - {"embeddings.position_ids"}
    assert all(np.array_equal(again[name], tensors[name]) for name in again)
    assert (tmp_path / "new" / "tokenizer.json").exists()
    save(tmp_path / "bare", config, params)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, load(tmp_path / "bare"), params))


def test_a_folder_with_prefixes_old_names_and_a_head(config, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    write(plain, config)
    write(tmp_path, config, prefix=f"{config.family}.", cls__bias=np.ones(2))
    tensors = read_tensors(tmp_path)
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in tensors.items()
    }
    safetensors.numpy.save_file(old, tmp_path / "model.safetensors")
    assert jax.tree.all(jax.tree.map(jnp.array_equal, load(tmp_path), load(plain)))


def test_shards_are_joined(config, tmp_path):
    tensors = write(tmp_path, config)
    want = load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        safetensors.numpy.save_file({n: tensors[n] for n in part}, tmp_path / file)
    index = {n: file for file, part in parts.items() for n in part}
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )
    assert jax.tree.all(jax.tree.map(jnp.array_equal, load(tmp_path), want))


def test_low_precision_files_load_as_float32(config, tmp_path):
    tensors = write(tmp_path, config)
    low = {name: array.astype(jnp.bfloat16) for name, array in tensors.items()}
    safetensors.numpy.save_file(low, tmp_path / "model.safetensors")
    kernel = load(tmp_path)["layer_0/ffn"]["wi"]["kernel"]
    assert kernel.dtype == jnp.float32
    want = low["encoder.layer.0.intermediate.dense.weight"].T.astype(np.float32)
    assert np.array_equal(kernel, want)


def test_start_takes_what_is_there_and_makes_the_rest(config, tmp_path, batch, key):
    write(tmp_path, config)
    loaded = load(tmp_path)
    for pool in ("cls", "pooler", "mean"):
        head = heads.classification(3, pool=pool)
        stages, params, state = begin(config, loaded, batch, key, head)
        assert params["embed"] is loaded["embed"]
        assert ("pooler" in params["pool"]) == (pool == "pooler")
        fresh = join(stages).init(key, spec_of(batch))[0]["head"]
        assert jax.tree.all(jax.tree.map(jnp.array_equal, fresh, params["head"]))


def test_what_does_not_fit_is_named(config, tmp_path, batch, key):
    name = "encoder.layer.1.output.dense.bias"
    write(tmp_path, config, drop=[name])
    with pytest.raises(ValueError, match=f"missing tensors .*{name}"):
        load(tmp_path)
    write(tmp_path, config, encoder__layer__2__more=np.ones(2))
    with pytest.raises(ValueError, match="unexpected tensors .*encoder.layer.2.more"):
        load(tmp_path)
    write(tmp_path, config)
    params = load(tmp_path)
    params["layer_0/ffn"]["wi"]["bias"] = jnp.ones(3)
    with pytest.raises(ValueError, match=r"'layer_0/ffn'.*\n.*wi/bias: .*\(3,\)"):
        begin(config, params, batch, key)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone is no folder.*make data"):
        load(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="no config.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gptx"}')
    with pytest.raises(ValueError, match="gptx.*bert, mpnet, gpt2"):
        load(tmp_path)


def test_squeezed_parameters_are_not_a_folder(config, tmp_path, batch, key):
    write(tmp_path, config)
    loaded = load(tmp_path)
    with pytest.raises(ValueError, match="layer_1/squeeze.*low_rank.squeeze_params"):
        begin(config, loaded, batch, key, squeeze={1: Squeeze(4)})
    _, params, _ = begin(config, {}, batch, key, squeeze={1: Squeeze(4)})
    with pytest.raises(ValueError, match="low_rank.merge"):
        save(tmp_path / "new", config, params)
    with pytest.raises(ValueError, match="layer_1/ffn/wi/kernel"):
        save(
            tmp_path / "new",
            config,
            {n: p for n, p in loaded.items() if "1" not in n}
            | {"layer_1/attention": loaded["layer_1/attention"]},
        )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("minilm", marks=pytest.mark.real("minilm")),
        pytest.param("mpnet", marks=[pytest.mark.real("mpnet"), pytest.mark.slow]),
    ],
)
def test_hidden_states_are_those_of_hugging_face(name, need_data, key):
    folder = need_data(name)
    reference = np.load(REFERENCE / f"{name}.npz")
    config = read_config(folder)
    x = {"ids": jnp.asarray(reference["ids"]), "mask": jnp.asarray(reference["mask"])}
    stages, params, state = begin(config, load(folder), x, key, heads.embedding())
    real, seen = reference["mask"], []
    run = {
        kind: jax.jit(
            lambda p, x, stage=stage: stage.apply(p, {}, x, key=None, train=False)[0]
        )
        for kind, stage in [(s.name.rpartition("/")[2], s) for s in stages]
    }
    for stage in stages:
        x = run[stage.name.rpartition("/")[2]](params[stage.name], x)
        if stage.name == "embed" or stage.name.endswith("/ffn"):
            seen.append(np.asarray(x["h"])[..., : reference["hidden"].shape[-1]])
    for ours, theirs in zip(seen, reference["hidden"], strict=True):
        np.testing.assert_allclose(ours[real], theirs[real], atol=1e-5)
    np.testing.assert_allclose(x, reference["embedding"], atol=1e-5)
