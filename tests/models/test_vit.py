import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.cut import cut
from splitjax.core.factor import factorize
from splitjax.core.stage import join
from splitjax.core.tree import spec_of, where
from splitjax.factors.low_rank import LowRank
from splitjax.models.export import save
from splitjax.models.folder import read_fields, read_tensors
from splitjax.models.pixels import pixels
from splitjax.models.pretrained import load, start
from splitjax.models.vit import vit
from splitjax.models.vit_config import VitConfig, from_json


@pytest.fixture
def model(reference, key):
    """Config, stages, parameters, pictures, the original's logits, the folder."""
    arrays, folder = reference("vit")
    config = from_json(read_fields(folder))
    x = jnp.asarray(arrays["pixel_values"].transpose(0, 2, 3, 1))
    stages = vit(config)
    params, _ = start(stages, load(folder), key=key, spec=spec_of(x))
    return config, stages, params, x, arrays["logits"], folder


def run(stages, params, x, train=False, key=None):
    whole, state = join(stages), {stage.name: {} for stage in stages}

    def apply(params, x):
        return whole.apply(params, state, x, key=key, train=train)[0]

    return jax.jit(apply)(params, x)


def test_logits_are_those_of_the_original(model):
    _, stages, params, x, logits, _ = model
    np.testing.assert_allclose(run(stages, params, x), logits, atol=2e-5)


def test_it_is_cut_anywhere_and_its_mask_is_of_tokens(model):
    _, stages, params, x, logits, _ = model
    made = cut(stages, after="layer_0/attention")
    x = {"h": x, "mask": jnp.array([True, True, False])}
    x = run(made.segments[0].stages, made.partition(params)[0], x)
    assert x["mask"].tolist() == [[True] * 5, [True] * 5, [False] * 5]
    y = run(made.segments[1].stages, made.partition(params)[1], x)
    np.testing.assert_allclose(y, logits, atol=2e-5)


def test_a_folder_is_written_back_to_the_bit(model, tmp_path):
    config, _, params, *_, source = model
    save(tmp_path, config, params)
    theirs, ours = read_tensors(source), read_tensors(tmp_path)
    assert set(theirs) == set(ours)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert from_json(read_fields(tmp_path)) == config


def test_every_kernel_may_be_a_factor_that_of_the_patches_too(model):
    _, stages, params, x, logits, _ = model

    def exact(leaf):
        eye = jnp.eye(leaf.shape[1])
        return LowRank(leaf, eye, eye)

    new = factorize(exact, params, where(".*/kernel"))
    assert isinstance(new["embed"]["patch"]["kernel"], LowRank)
    np.testing.assert_allclose(run(stages, new, x), logits, atol=2e-5)


def test_other_classes_and_pictures_as_they_are_stored(model, key):
    config, _, _, _, _, folder = model
    config = dataclasses.replace(config, classes=7, dropout=0.1, attention_dropout=0.1)
    stages = (pixels([127.5] * 3, [127.5] * 3), *vit(config))
    x = {"image": jnp.zeros((2, 8, 8, 3), jnp.uint8), "mask": jnp.ones(2, bool)}
    loaded = load(folder)
    with pytest.raises(ValueError, match="stage 'head' do not fit"):
        start(stages, loaded, key=key, spec=spec_of(x))
    del loaded["head"]
    params, _ = start(stages, loaded, key=key, spec=spec_of(x))
    y = run(stages, params, x)
    assert y.shape == (2, 7) and jnp.array_equal(y[0], y[1])
    h = run(stages[:3], params, x, True, key)["h"]
    assert not jnp.array_equal(h[0], h[1])  # of equal pictures: dropout's own draws


def test_bad_input_is_refused(model):
    _, stages, params, x, _, folder = model
    with pytest.raises(ValueError, match=r"float \(B, 8, 8, 3\): .*\(3, 4, 8, 3\)"):
        run(stages, params, x[:, :4])
    with pytest.raises(ValueError, match="no whole patches of 5"):
        VitConfig(size=8, patch=5)
    with pytest.raises(ValueError, match="no multiple of 5"):
        VitConfig(width=16, heads=5)
    fields = read_fields(folder)
    for name, value in (("hidden_act", "relu"), ("qkv_bias", False)):
        with pytest.raises(ValueError, match=f"{name} {value!r}; only"):
            from_json({**fields, name: value})
    with pytest.raises(ValueError, match="model_type 'deit'"):
        from_json({**fields, "model_type": "deit"})
