"""ResNet-50 from its archive, against a NumPy walk of the archive's own definition."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax import data
from splitjax.core.tree import spec_of
from splitjax.models.keras_resnet import keras_pixels, load, read_arrays
from splitjax.models.pretrained import start
from splitjax.models.resnet import KERAS, ResNetConfig, resnet

REFERENCE = pathlib.Path(__file__).parent / "reference" / "resnet50.npz"
STAGES = (keras_pixels(), *resnet(KERAS, 1000))


def write(folder, arrays, *, shard=7, **more):
    """A TensorFlow.js folder whose shards end inside of arrays."""
    stream = b"".join(a.astype("<f4").tobytes() for a in arrays.values())
    parts = [stream[i : i + shard] for i in range(0, len(stream), shard)]
    for number, part in enumerate(parts):
        (folder / f"{number}.bin").write_bytes(part)
    entries = [
        {"name": n, "shape": list(a.shape), "dtype": "float32", **more}
        for n, a in arrays.items()
    ]
    group = {"paths": [f"{i}.bin" for i in range(len(parts))], "weights": entries}
    (folder / "model.json").write_text(json.dumps({"weightsManifest": [group]}))


def edit(folder, change):
    path = folder / "model.json"
    content = json.loads(path.read_text())
    change(content["weightsManifest"][0])
    path.write_text(json.dumps(content))


ARRAYS = {"b": np.arange(6.0).reshape(2, 3), "a": np.float32(7), "c": np.ones((1, 4))}


def test_shards_are_one_stream(tmp_path):
    write(tmp_path, ARRAYS)
    found = read_arrays(tmp_path)
    assert list(found) == list(ARRAYS)
    jax.tree.map(np.testing.assert_array_equal, found, ARRAYS)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda g: g["paths"].pop(), ValueError, "shards end before 'c'"),
        (lambda g: g["weights"].pop(), ValueError, "have 44 bytes, the manifest 28"),
        (lambda g: g["paths"].append("../x"), ValueError, "'../x' lies outside"),
        (lambda g: g["paths"].append("9.bin"), FileNotFoundError, "has no 9.bin"),
        (
            lambda g: g["weights"][0].update(quantization={}),
            ValueError,
            "'b' is not plain float32",
        ),
        (lambda g: None, ValueError, "does not fit ResNet-50: it lacks 'conv1/kernel'"),
    ],
    ids=["short", "long", "outside", "gone", "quantized", "another model"],
)
def test_what_is_not_the_archive_is_told(change, error, message, tmp_path):
    write(tmp_path, ARRAYS)
    edit(tmp_path, change)
    with pytest.raises(error, match=message):
        load(tmp_path)


def test_statistics_are_taken_and_checked(key):
    stages = resnet(ResNetConfig((1,), width=4), 2)
    spec = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    params, state = start(stages, {}, key=key, spec=spec)
    given = jax.tree.map(lambda a: a + 5, state["stem"])
    more, new = start(stages, params, key=key, spec=spec, statistics={"stem": given})
    assert new["stem"] is given and more["stem"] is params["stem"]
    jax.tree.map(np.testing.assert_array_equal, new["layer1/0"], state["layer1/0"])
    wrong = {"stem": jax.tree.map(lambda a: a[:3], given)}
    with pytest.raises(ValueError, match=r"'stem' do not fit.*\n.*norm/mean: .*\(3,\)"):
        start(stages, {}, key=key, spec=spec, statistics=wrong)


def begin(need_data, key, size=0):
    params, state = load(need_data("resnet50"))
    stages = (keras_pixels(size=size), *STAGES[1:])
    image = np.load(REFERENCE)["image"]
    x = {"image": jnp.asarray(image), "mask": jnp.ones(len(image), bool)}
    made = start(stages, params, key=key, spec=spec_of(x), statistics=state)
    assert all(made[0][name] is params[name] for name in params)
    return stages, *made, x


@pytest.mark.real("resnet50")
def test_every_layer_is_that_of_the_archives_definition(need_data, key):
    stages, params, state, x = begin(need_data, key)
    reference, seen, last = np.load(REFERENCE), {}, ""
    for stage in stages:
        x = stage.apply(params[stage.name], state[stage.name], x, key=None, train=False)
        x = x[0]
        last = "logits" if stage.name == "head" else stage.name.partition("/")[0]
        h = np.asarray(x["h"] if isinstance(x, dict) else x)
        seen[last] = h.reshape(2, -1)[:, :1000]
    for name in ("stem", "layer1", "layer2", "layer3", "layer4", "logits"):
        want = reference[name]
        atol = 1e-4 * np.abs(want).max()
        np.testing.assert_allclose(seen[name], want, rtol=0, atol=atol, err_msg=name)


@pytest.mark.slow
@pytest.mark.real("resnet50", "cifar10")
def test_it_names_what_small_pictures_show(need_data, key):
    """Scaled up, cars and ships of CIFAR-10 are named so far above chance (0.02)."""
    stages, params, state, _ = begin(need_data, key, size=224)
    names = json.loads((need_data("resnet50") / "labels.json").read_text())
    table = data.load_images("cifar10", "test", fetch=False)
    kinds = {
        1: "car|moving_van|convertible|wagon|cab|racer|limousine|jeep|minivan|pickup",
        8: "ship|liner|speedboat|boat|catamaran|yawl|schooner|container",
    }
    rows = np.flatnonzero(np.isin(table.label, list(kinds)))[:24]
    x = {"image": jnp.asarray(table.image[rows]), "mask": jnp.ones(len(rows), bool)}
    for stage in stages:
        x = stage.apply(params[stage.name], state[stage.name], x, key=None, train=False)
        x = x[0]
    found = [names[str(i)] for i in np.asarray(x).argmax(1)]
    right = [
        any(word in name for word in kinds[label].split("|"))
        for name, label in zip(found, table.label[rows].tolist(), strict=True)
    ]
    assert np.mean(right) > 0.3, found
