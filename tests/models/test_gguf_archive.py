import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.stage import join
from splitjax.core.tree import spec_of
from splitjax.models.decoder import decoder
from splitjax.models.decoder_config import from_json
from splitjax.models.decoder_table import GGUF, LLAMA
from splitjax.models.export import save
from splitjax.models.folder import read_fields, read_tensors
from splitjax.models.gguf_archive import gguf_config, load_gguf
from splitjax.models.pretrained import start


def interleaved(weight, heads):
    """Rows of a head from (i, i + half) to (2i, 2i + 1), as such archives have them."""
    out = np.empty_like(weight)
    for head in np.split(np.arange(len(weight)), heads):
        half = len(head) // 2
        out[head[::2]], out[head[1::2]] = weight[head[:half]], weight[head[half:]]
    return out


def write(path, folder, *, drop=(), facts=(), arch="llama"):
    """A folder of the Llama form as a GGUF archive."""
    import gguf

    config, tensors = from_json(read_fields(folder)), read_tensors(folder)
    names = {
        "embed_tokens.weight": "token_embd.weight",
        "norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    for i in range(config.layers):
        for place, theirs in LLAMA.items():
            names[f"layers.{i}.{theirs}.weight"] = f"blk.{i}.{GGUF[place]}.weight"
    made = gguf.GGUFWriter(path, arch)
    made.add_block_count(config.layers)
    made.add_context_length(config.positions)
    made.add_embedding_length(config.width)
    made.add_feed_forward_length(config.ffn)
    made.add_head_count(config.heads)
    made.add_head_count_kv(config.kv_heads)
    made.add_layer_norm_rms_eps(config.eps)
    made.add_rope_freq_base(config.rope_base)
    made.add_rope_dimension_count(config.head_width)
    made.add_vocab_size(config.vocab)
    for name, value in facts:
        made.add_string(name, value)
    for name, array in tensors.items():
        if "q_proj" in name:
            array = interleaved(array, config.heads)
        if "k_proj" in name:
            array = interleaved(array, config.kv_heads)
        if names[name] not in drop:
            made.add_tensor(names[name], array)
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return path


def run(stages, params, state, x):
    model = join(stages)
    return jax.jit(lambda p, x: model.apply(p, state, x, key=None, train=False)[0])(
        params, x
    )


@pytest.fixture
def archive(reference, tmp_path):
    """The reference of the Llama form as an archive, and what the original computed."""
    arrays, folder = reference("llama")
    return write(tmp_path / "model.gguf", folder), folder, arrays


def test_an_archive_computes_what_the_folder_does(archive, key):
    path, _, arrays = archive
    config, params = load_gguf(path.parent)
    assert config.interleaved and not config.tied
    x = {
        "ids": jnp.asarray(arrays["input_ids"], jnp.int32),
        "mask": jnp.asarray(arrays["attention_mask"], bool),
    }
    stages = decoder(config)
    params, state = start(stages, params, key=key, spec=spec_of(x))
    y = run(stages, params, state, x)
    real = np.asarray(x["mask"])
    np.testing.assert_allclose(y[real], arrays["logits"][real], atol=2e-5)
    # The other form of rotation would be another model.
    other = decoder(dataclasses.replace(config, interleaved=False))
    z = run(other, params, state, x)
    assert np.abs(z[real] - arrays["logits"][real]).max() > 1e-2


def test_an_archive_becomes_the_folder_that_it_came_of(archive, tmp_path):
    path, folder, _ = archive
    config, params = load_gguf(path)
    save(tmp_path / "new", config, params)
    ours, theirs = read_tensors(tmp_path / "new"), read_tensors(folder)
    assert set(ours) == set(theirs)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    wanted = from_json(read_fields(folder))
    found = from_json(read_fields(tmp_path / "new"))
    assert found.eps == pytest.approx(wanted.eps)  # an archive holds it in float32
    assert dataclasses.replace(found, eps=wanted.eps) == wanted


def test_a_config_is_parsed_once_until_the_file_changes(archive, monkeypatch):
    import gguf

    path, folder, _ = archive
    opened, reader = [], gguf.GGUFReader

    def counted(file):
        opened.append(file)
        return reader(file)

    monkeypatch.setattr(gguf, "GGUFReader", counted)
    config = gguf_config(path)
    assert gguf_config(path.parent) == config == load_gguf(path)[0]
    assert len(opened) == 2  # the last one, for the tensors
    with pytest.raises(ValueError, match="cannot be tied"):
        gguf_config(path, tied=True)
    later = path.stat().st_mtime_ns + 10**9
    write(path, folder, drop=["output.weight"])
    os.utime(path, ns=(later, later))
    assert gguf_config(path).tied and not gguf_config(path, tied=False).tied


def test_a_tied_archive_may_have_a_copy_of_its_table(reference, tmp_path):
    _, folder = reference("llama")
    path = write(tmp_path / "model.gguf", folder, drop=["output.weight"])
    assert load_gguf(path)[0].tied
    config, params = load_gguf(path, tied=False)
    assert not config.tied
    table = params["embed"]["word"]["embedding"]
    assert jnp.array_equal(params["head"]["out"]["kernel"], table.T)


def test_what_is_not_built_is_refused(reference, tmp_path, archive):
    path, folder, _ = archive
    with pytest.raises(ValueError, match="head of its own"):
        load_gguf(path, tied=True)
    with pytest.raises(FileNotFoundError, match="data.fetch smollm2"):
        load_gguf(tmp_path / "gone.gguf")
    path = write(tmp_path / "a.gguf", folder, drop=["blk.1.ffn_up.weight"])
    with pytest.raises(ValueError, match=r"missing tensors .*blk.1.ffn_up.weight"):
        load_gguf(path)
    scaled = [("llama.rope.scaling.type", "yarn")]
    with pytest.raises(ValueError, match="scales its rotary positions"):
        load_gguf(write(tmp_path / "b.gguf", folder, facts=scaled))
    with pytest.raises(ValueError, match="archive of 'falcon': only 'llama'"):
        load_gguf(write(tmp_path / "c.gguf", folder, arch="falcon"))
