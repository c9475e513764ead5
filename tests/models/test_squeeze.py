import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.stage import Stage, join
from splitjax.core.tree import path_name, spec_of
from splitjax.models.bert import bert, ffn
from splitjax.models.squeeze import Squeeze, squeezed

TREES = {
    "sft": (Squeeze(4), "s/kernel v/kernel", "u/bias u/kernel"),
    "keep": (Squeeze(4, skip="keep"), "s/kernel v/kernel", "u/bias u/kernel"),
    "narrow": (
        Squeeze(4, skip=3),
        "s/kernel skip/kernel skip/mean v/kernel",
        "skip_out/bias skip_out/kernel u/bias u/kernel",
    ),
    "pca": (
        Squeeze(4, mode="pca"),
        "code/kernel code/mean",
        "decode/bias decode/kernel wi/bias wi/kernel",
    ),
}


def fitted(dense, squeeze, mean=None, basis=None):
    """Squeezed parameters of a dense block, by NumPy, as `factors.low_rank` fits."""
    rest = {"wo": dense["wo"], "norm": dense["norm"]}
    center, rebuild = {"kernel": basis, "mean": mean}, {}
    if basis is not None:
        rebuild = {"kernel": basis.T, "bias": mean}
    if squeeze.mode == "pca":
        return {"code": center}, {"decode": rebuild, "wi": dense["wi"], **rest}
    v, s, u = np.linalg.svd(np.asarray(dense["wi"]["kernel"]), full_matrices=False)
    r = squeeze.rank
    first = {"v": {"kernel": v[:, :r]}, "s": {"kernel": np.diag(s[:r])}}
    second = {"u": {"kernel": u[:r], "bias": dense["wi"]["bias"]}, **rest}
    if basis is not None:
        first, second = {**first, "skip": center}, {**second, "skip_out": rebuild}
    return jax.tree.map(jnp.asarray, (first, second))


@pytest.fixture
def dense(config, batch, key):
    model = join(bert(config))
    spec = spec_of(batch)
    return model, *jax.jit(lambda key: model.init(key, spec))(key)


def run(model, params, batch, *, train=False, key=None):
    state = {stage.name: {} for stage in model.stages}

    def call(params, batch, key):
        return model.apply(params, state, batch, key=key, train=train)[0]

    return jax.jit(call)(params, batch, key)


def squeezed_params(params, squeeze, **kwargs):
    params = dict(params)
    both = fitted(params.pop("layer_1/ffn"), squeeze, **kwargs)
    return {**params, "layer_1/squeeze": both[0], "layer_1/expand": both[1]}


@pytest.mark.parametrize("name", TREES)
def test_parameter_trees(name, config, batch, key):
    squeeze, first, second = TREES[name]
    model = join(bert(config, squeeze={1: squeeze}))
    params, _ = jax.eval_shape(model.init, key, spec_of(batch))

    def names(tree):
        found = jax.tree_util.tree_leaves_with_path(tree)
        return {path_name(path) for path, _ in found}

    rest = "norm/bias norm/scale wo/bias wo/kernel"
    assert names(params["layer_1/squeeze"]) == set(first.split())
    assert names(params["layer_1/expand"]) == set(f"{second} {rest}".split())


def test_full_rank_with_its_skip_is_the_dense_block(config, batch, key, dense):
    model, params, _ = dense
    want = run(model, params, batch)["h"]
    eye, zero = jnp.eye(config.width), jnp.zeros(config.width)
    for squeeze, kwargs in [
        (Squeeze(16, skip="keep"), {}),
        (Squeeze(16, skip=16), {"mean": zero + 0.3, "basis": eye}),
        (Squeeze(16, mode="pca"), {"mean": zero + 0.3, "basis": eye}),
    ]:
        other = join(bert(config, squeeze={1: squeeze}))
        got = run(other, squeezed_params(params, squeeze, **kwargs), batch)["h"]
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_without_skip_it_is_the_skipless_block(config, batch, dense):
    _, params, _ = dense
    other = join(bert(config, squeeze={1: Squeeze(16)}))
    got = run(other, squeezed_params(params, Squeeze(16)), batch)["h"]
    skipless = dataclasses.replace(config, skipless=(1,))
    want = run(join(bert(skipless)), params, batch)["h"]
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_what_v_does_not_see_does_not_pass(config, batch, dense):
    _, params, _ = dense
    squeeze = Squeeze(4)
    params = squeezed_params(params, squeeze)
    part = join(squeezed(ffn(config, 1), config, squeeze))
    a = jax.random.normal(jax.random.key(1), (2, 5, config.width))
    v = params["layer_1/squeeze"]["v"]["kernel"]
    hidden = jax.random.normal(jax.random.key(2), a.shape)
    hidden = hidden - hidden @ v @ v.T
    mask = jnp.ones((2, 5), bool)
    one = run(part, params, {"h": a, "mask": mask})
    two = run(part, params, {"h": a + hidden, "mask": mask})
    np.testing.assert_allclose(one["h"], two["h"], atol=1e-4)


@pytest.mark.parametrize("name", TREES)
def test_what_crosses(name, config, batch, key):
    squeeze = TREES[name][0]
    stages = bert(config, squeeze={1: squeeze}, dtype=jnp.bfloat16)
    edge, cloud = join(stages[:-1]), join(stages[-1:])
    model = join(stages)
    params, _ = jax.jit(lambda key: model.init(key, spec_of(batch)))(key)
    code = run(edge, params, batch, key=key, train=True)
    widths = {"h": 4, **{"keep": {"skip": 16}, "narrow": {"skip": 3}}.get(name, {})}
    assert {n: a.shape[-1] for n, a in code.items() if n != "mask"} == widths
    assert {a.dtype.name for a in code.values()} == {"bfloat16", "bool"}
    y = run(cloud, params, code, key=key, train=True)
    assert set(y) == {"h", "mask"} and y["h"].shape == (4, 7, 16)


def test_s_gets_a_whole_gradient(config, batch, dense):
    _, params, _ = dense
    params = squeezed_params(params, Squeeze(4))
    model = join(bert(config, squeeze={1: Squeeze(4)}))
    grad = jax.grad(lambda p: run(model, p, batch)["h"][..., 0].sum())(params)
    s = grad["layer_1/squeeze"]["s"]["kernel"]
    assert jnp.abs(s - jnp.diag(jnp.diag(s))).max() > 0


@pytest.mark.parametrize(
    ("layer", "given", "match"),
    [
        (2, dict(rank=4), "layer 2; the layers are 0 to 1.*l - 1"),
        (-1, dict(rank=4), "0 to 1"),
        (1, dict(rank=0), "rank 0 .* 1 to 16"),
        (1, dict(rank=17), "rank 17 .* 1 to 16"),
        (1, dict(rank=True), "rank True"),
        (1, dict(rank=4, skip=17), "skip 17 .* 1 to 16"),
        (1, dict(rank=4, skip="all"), "'keep' or a number"),
        (1, dict(rank=4, skip=2, mode="pca"), "skip is None"),
        (1, dict(rank=4, mode="qr"), "'svd' or 'pca'"),
    ],
)
def test_bad_cuts_are_refused(layer, given, match, config):
    with pytest.raises(ValueError, match=match):
        bert(config, squeeze={layer: Squeeze(**given)})


def test_other_blocks_are_refused(config):
    block = ffn(config, 0)
    other = Stage("layer_0/ffn", block.init, block.apply, tags=frozenset({"pre_ln"}))
    with pytest.raises(ValueError, match="post_ln_ffn.*pre-LN.*gated"):
        squeezed(other, config, Squeeze(4))
