"""ResNets, VGGs and the small network: sizes as published, stages, cuts, padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.core.stage import join, output_spec
from splitjax.core.tree import spec_of
from splitjax.metrics.loss import cross_entropy
from splitjax.models.cnn import cnn
from splitjax.models.pixels import pixels
from splitjax.models.resnet import CONFIGS, KERAS, ResNetConfig, resnet
from splitjax.models.vgg import vgg

PIXELS = pixels([120.0] * 3, [60.0] * 3, flip=True, pad=1)
TINY = ResNetConfig((1, 1), width=4)
NARROW = dataclasses.replace(KERAS, blocks=(1, 1), width=4)
MODELS = {
    "basic": (PIXELS, *resnet(TINY, 3)),
    "bottleneck": (PIXELS, *resnet(NARROW, 3)),
    "vgg": (PIXELS, *vgg(3, blocks=((4, 1), (8, 1)), hidden=(8,), dropout=0.2)),
    "cnn": (PIXELS, *cnn(3, widths=(4, 8), hidden=8)),
}
NAMES = [s.name for s in MODELS["basic"]]
IDENTITY = Link(chain(), chain())


def data(rows=6, valid=4):
    """A short batch, whose padding is not black: it must not matter."""
    image = np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 3), np.uint8)
    x = {"image": jnp.asarray(image), "mask": jnp.arange(rows) < valid}
    return x, {"y": jnp.arange(rows) % 3, "n_valid": jnp.int32(valid)}


def parted(stages, places, x, target, key, made=None):
    """Loss, gradient and state of a split, merged."""
    parts = cut(stages, after=places)
    split = Split(parts, (IDENTITY,) * len(places), cross_entropy)
    whole = made or join(stages).init(jax.random.key(1), spec_of(x))
    params, state = map(parts.partition, whole)
    ends = split.init_links(params, state, spec_of(x))
    run = jax.jit(lambda p, s: split.value_and_grad(p, s, ends, x, target, key=key))
    (value, extra), grads = run(params, state)
    return value, parts.merge(grads), parts.merge(extra["state"])


def close(a, b, tolerance=2e-5):
    """Equal, as a share of the largest of all: some gradients are noise about zero."""
    most = max((float(np.abs(a).max(initial=0)) for a in jax.tree.leaves(b)), default=0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * most), a, b
    )


@pytest.fixture(scope="module")
def whole():
    """The un-split run of the basic ResNet on the short batch."""
    x, target = data()
    return parted(MODELS["basic"], (), x, target, jax.random.key(0))


@pytest.mark.parametrize(
    "places", [*((n,) for n in NAMES), ("stem", "layer2")], ids="+".join
)
def test_split_equals_unsplit_on_a_short_batch_with_norm_state(places, whole, key):
    x, target = data()
    value, grads, state = parted(MODELS["basic"], places, x, target, key)
    np.testing.assert_allclose(value, whole[0], rtol=1e-6)
    close(grads, whole[1])
    close(state, whole[2])
    old = join(MODELS["basic"]).init(key, spec_of(x))[1]["stem"]["batch_stats"]["norm"]
    new = state["stem"]["batch_stats"]["norm"]
    assert not np.array_equal(old["mean"], new["mean"])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "bottleneck" else [])
        for name in MODELS
    ],
)
def test_padding_does_not_matter(name):
    # The short batch by itself draws other chances: here there are none.
    stages = [pixels([120.0] * 3, [60.0] * 3), *MODELS[name][1:]]
    if name == "vgg":
        stages = [
            *stages[:-1],
            vgg(3, blocks=((4, 1), (8, 1)), hidden=(8,), dropout=0.0)[-1],
        ]
    x, target = data()
    made = join(stages).init(jax.random.key(1), spec_of(x))
    value, grads, state = parted(stages, (), x, target, None, made)
    short = jax.tree.map(lambda a: a[:4], x)
    target = {"y": target["y"][:4], "n_valid": target["n_valid"]}
    want = parted(stages, (), short, target, None, made)
    np.testing.assert_allclose(value, want[0], rtol=1e-5)
    close(grads, want[1], 1e-4)
    close(state, want[2])


def test_what_a_codec_does_to_padding_reaches_no_parameter(key):
    """A gradient that comes back for padding rows is not pulled into the edge."""
    stages = MODELS["basic"][:3]
    x, _ = data()
    model = join(stages)
    params, state = model.init(key, spec_of(x))

    def run(params):
        return model.apply(params, state, x, key=key, train=True)[0]["h"]

    h, pull = jax.vjp(run, params)
    noise = jnp.ones_like(h).at[:4].set(0)
    assert all(not leaf.any() for leaf in jax.tree.leaves(pull(noise)))


def shapes(stages, size):
    """Specs of parameters, and of what leaves each stage, by name; nothing is run."""
    spec = {
        "h": jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32),
        "mask": jax.ShapeDtypeStruct((2,), jnp.bool_),
    }
    params, out = {}, {}
    for stage in stages:
        params[stage.name], state = jax.eval_shape(stage.init, jax.random.key(0), spec)
        spec = output_spec(stage, params[stage.name], state, spec)
        out[stage.name] = spec["h"].shape[1:] if isinstance(spec, dict) else spec.shape
    return sum(leaf.size for leaf in jax.tree.leaves(params)), out


# Parameters of the published ImageNet models (torchvision's tables).
COUNTS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "vgg16": 138_357_544,
    "vgg16_norm": 138_365_992,
}


@pytest.mark.parametrize("name", COUNTS)
def test_sizes_are_those_published(name):
    if name.startswith("vgg"):
        wide = dict(hidden=(4096, 4096), norm=name == "vgg16_norm")
        stages = vgg(1000, **wide)
    else:
        config = dataclasses.replace(CONFIGS[name], stem="imagenet")
        stages = resnet(config, 1000)
    count, out = shapes(stages, 224)
    assert count == COUNTS[name]
    last = {"resnet18": (7, 7, 512), "resnet50": (7, 7, 2048), "vgg16": (7, 7, 512)}
    assert list(out.values())[-2] == last.get(name, (7, 7, 512))


@pytest.mark.parametrize(
    "name, millions", [("resnet20", "0.27"), ("resnet56", "0.85"), ("resnet110", "1.7")]
)
def test_those_for_small_pictures_have_the_published_sizes(name, millions):
    """Table 6 of He et al.; nothing is learned where the shape changes."""
    count, out = shapes(resnet(CONFIGS[name], 10), 32)
    digits = len(millions) - 2
    assert f"{count / 1e6:.{digits}f}" == millions
    assert list(out.values())[-2] == (8, 8, 64)


def test_a_shortcut_without_parameters_is_every_other_place(key):
    config = ResNetConfig((1, 1), width=4, shortcut="pad")
    block = resnet(config, 3)[2]
    x = jax.random.normal(key, (2, 8, 8, 4))
    params, state = block.init(key, spec_of(x))
    still = jax.tree.map(jnp.zeros_like, params)
    y = block.apply(still, state, x, key=None, train=False)[0]
    want = jnp.concatenate([jax.nn.relu(x[:, ::2, ::2]), jnp.zeros((2, 4, 4, 4))], -1)
    np.testing.assert_array_equal(y, want)
    with pytest.raises(ValueError, match="shortcut 'padd'.*'pad'"):
        ResNetConfig((1,), shortcut="padd")


def test_c3_sls_cuts_are_places():
    """At 32 x 32 they have 4,096 values (ResNet-50) and 2,048 (VGG-16)."""
    _, out = shapes(resnet(KERAS, 10), 32)
    assert out["layer3/5"] == (2, 2, 1024) and out["layer4/2"] == (1, 1, 2048)
    edge, _ = cut(resnet(KERAS, 10), after="layer3").segments
    assert edge.stages[-1].name == "layer3/5"
    _, out = shapes(vgg(10), 32)
    assert out["block4/pool"] == (2, 2, 512)
    edge, _ = cut(vgg(10), after="block4").segments
    assert edge.stages[-1].name == "block4/pool"
    _, out = shapes(resnet(CONFIGS["resnet18"], 10), 32)
    assert out["stem"] == (32, 32, 64) and out["layer4/1"] == (4, 4, 512)


def test_pictures_alone_are_an_input(key):
    x = jax.random.normal(key, (2, 8, 8, 3))
    for name, stages in MODELS.items():
        model = join(stages[1:])
        made = model.init(key, spec_of(x))
        y = model.apply(*made, x, key=None, train=False)[0]
        both = {"h": x, "mask": jnp.ones(2, bool)}
        z = model.apply(*made, both, key=None, train=False)[0]
        np.testing.assert_allclose(y, z, atol=1e-6, err_msg=name)


def test_low_precision(key):
    x = jax.random.normal(key, (2, 8, 8, 3))
    model = join(resnet(TINY, 3, dtype=jnp.bfloat16))
    params, state = model.init(key, spec_of(x))
    body = join(model.stages[:-1])
    h = body.apply(params, state, x, key=None, train=True)[0]
    y = model.apply(params, state, x, key=None, train=True)[0]
    assert (h.dtype, y.dtype) == (jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_what_cannot_be_is_told(key):
    with pytest.raises(ValueError, match="stem 'imagnet': did you mean 'imagenet'"):
        dataclasses.replace(TINY, stem="imagnet")
    with pytest.raises(ValueError, match="block2/pool: pictures of 1 x 1 .*size="):
        shapes(cnn(3), 3)
