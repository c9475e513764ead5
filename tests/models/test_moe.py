"""Experts in the feed-forward blocks of a decoder, plain and gated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.stage import join, substitute
from splitjax.factors.mpo import MpoExperts
from splitjax.factors.mpo_plan import mpo_plan
from splitjax.models.bert_config import BertConfig
from splitjax.models.decoder import decoder
from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.experts import ExpertDense, Moe
from splitjax.models.moe import moe_ffn
from splitjax.models.session import session
from splitjax.models.upcycle import expert_specs, upcycle

B, T, D, F, E = 2, 6, 8, 12, 4
SIZES = dict(vocab=17, width=D, heads=2, layers=1, ffn=F, positions=16, init_std=0.3)
CONFIGS = {
    "llama": DecoderConfig(kv_heads=1, **SIZES),
    "gpt2": DecoderConfig("gpt2", kv_heads=2, **SIZES),
}
AMPLE = dict(experts=E, capacity=E, eval_capacity=E)
KEY, BLOCK = jax.random.key(3), "layer_0/ffn"
X = {
    "ids": jax.random.randint(KEY, (B, T), 0, 17),
    "mask": jnp.arange(T)[None] < jnp.array([[T], [4]]),
}


def plans(config):
    """A plan for each kernel of a block."""
    made = {"wi": mpo_plan(D, F, 3), "wo": mpo_plan(F, D, 3)}
    return made | ({"gate": made["wi"]} if config.family == "llama" else {})


@pytest.fixture(scope="module", params=CONFIGS)
def dense(request):
    """A config, its dense stages and parameters, and the logits of X."""
    config = CONFIGS[request.param]
    stages = decoder(config)
    params, _ = jax.jit(lambda key: join(stages).init(key, X))(KEY)
    return config, stages, params, run(stages, params)


@pytest.mark.parametrize("config", [BertConfig, DecoderConfig])
def test_its_norm_is_fused_as_the_configs(config):
    more = {"family": "gpt2", "kv_heads": 2} if config is DecoderConfig else {}
    x = {"h": jax.random.normal(KEY, (B, T, D)), "mask": X["mask"]}
    values, texts = [], []
    for fused in ("", "xla"):
        made = config(**SIZES, **more, dropout=0.0, fused=fused)
        stage = moe_ffn(made, 0, Moe(**AMPLE))
        params, state = stage.init(KEY, x)

        def apply(params, stage=stage, state=state):
            return stage.apply(params, state, x, key=None, train=False)[0]["h"]

        values.append(jax.jit(apply)(params))
        texts.append(str(jax.make_jaxpr(apply)(params)))
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)
    assert texts[0].count("custom_vjp_call") < texts[1].count("custom_vjp_call")


@functools.cache
def program(stages, train):
    state = {stage.name: {} for stage in stages}

    def apply(params, x, key):
        return join(stages).apply(params, state, x, key=key, train=train)

    return jax.jit(apply)


def run(stages, params, x=X, key=None):
    return program(stages, key is not None)(params, x, key)[0]


def grown(dense, kind, moe, std=0.5):
    """Stages and parameters with experts in the block."""
    config, stages, params, _ = dense
    shared = plans(config) if kind == "shared" else None
    block = upcycle(params[BLOCK], moe.experts, key=KEY, plans=shared, std=std)
    made = substitute(stages, moe_ffn(config, 0, moe, plans=shared))
    return made, {**params, BLOCK: block}


@pytest.mark.parametrize("kind", ["shared", "plain"])
@pytest.mark.parametrize("router", ["top1_st", "top2"])
def test_upcycled_is_the_dense_model_at_the_start(kind, router, dense):
    """Gates add up to 1 and experts are copies, also in training, by chance."""
    stages, params = grown(dense, kind, Moe(router=router, **AMPLE))
    real = np.asarray(X["mask"])
    for key in (None, KEY):
        np.testing.assert_allclose(
            run(stages, params, key=key)[real], dense[3][real], atol=2e-5
        )
    names = ["wi", "wo", *(["gate"] if dense[0].family == "llama" else [])]
    kernels = {name for name, part in params[BLOCK].items() if "kernel" in part}
    assert kernels == {*names, "router"}
    assert all(
        isinstance(params[BLOCK][name]["kernel"], MpoExperts) == (kind == "shared")
        for name in names
    )
    assert ("bias" in params[BLOCK]["wi"]) == (dense[0].family == "gpt2")


def test_fresh_blocks_have_the_shapes_of_upcycled_ones(dense):
    for kind in ("shared", "plain"):
        stages, params = grown(dense, kind, Moe(**AMPLE))
        fresh, _ = jax.eval_shape(join(stages).init, KEY, X)
        assert jax.tree.structure(fresh) == jax.tree.structure(params)
        assert [a.shape for a in jax.tree.leaves(fresh)] == [
            a.shape for a in jax.tree.leaves(params)
        ]
        specs = expert_specs(params)[BLOCK]
        assert specs["wo"] != specs["router"]


def apart(params):
    """The same with experts that are no copies any more."""
    block = dict(params[BLOCK])
    for name in ("wi", "wo"):
        kernel = block[name]["kernel"]
        noise = 0.3 * jax.random.normal(KEY, kernel.shape)
        block[name] = {**block[name], "kernel": kernel + noise}
    return {**params, BLOCK: block}


def test_experts_differ_once_they_are_no_copies(dense):
    stages, params = grown(dense, "plain", Moe(**AMPLE))
    gap = jnp.abs(run(stages, apart(params)) - dense[3])[X["mask"]]
    assert float(gap.max(-1).min()) > 1e-3


@pytest.mark.parametrize("group", ["batch", "sequence"])
def test_a_place_is_not_taken_by_a_later_token_of_the_row(group, dense):
    """Nor by padding; with few places, so that some tokens find none."""
    moe = Moe(experts=E, capacity=0.1, eval_capacity=0.1, group=group)
    stages, params = grown(dense, "plain", moe)
    params = apart(params)
    params[BLOCK]["router"]["bias"] = jnp.array([9.0, 0.0, 0.0, 0.0])
    x = {**X, "mask": jnp.ones((B, T), bool)}
    changed = {**x, "ids": x["ids"].at[0, 4].add(1)}
    one, two = run(stages, params, x)[0], run(stages, params, changed)[0]
    np.testing.assert_array_equal(one[:4], two[:4])
    assert float(jnp.abs(one[4] - two[4]).max()) > 1e-3
    _, _, aux = program(stages, False)(params, x, None)
    assert float(aux[BLOCK]["dropped"]) > 0.1


def test_a_session_goes_on_as_the_whole_text(dense):
    moe = Moe(experts=E, eval_capacity=E, group="sequence")
    stages, params = grown(dense, "plain", moe)
    params = apart(params)
    x = {"ids": X["ids"], "mask": jnp.ones((B, T), bool)}
    whole = run(stages, params, x)
    spec = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in x.items()}
    memory = session(stages, params, {stage.name: {} for stage in stages}, spec)
    apply = jax.jit(
        lambda memory, x: join(stages).apply(params, memory, x, key=None, train=False)
    )
    for first, last in ((0, 4), (4, 5), (5, 6)):
        piece = {name: a[:, first:last] for name, a in x.items()}
        y, memory, _ = apply(memory, piece)
        np.testing.assert_allclose(y, whole[:, first:last], atol=2e-5)


def test_the_gradient_reaches_router_experts_and_core(dense):
    stages, params = grown(dense, "shared", Moe(**AMPLE))

    def loss(params):
        y, _, aux = program(stages, True)(params, X, KEY)
        return jnp.square(y[X["mask"]]).mean() + aux["loss"]

    grads = jax.grad(loss)(params)[BLOCK]
    kernel = grads["gate" if dense[0].family == "llama" else "wi"]["kernel"]
    leaves = kernel.central, kernel.left[0], grads["router"]["kernel"]
    assert all(float(jnp.abs(leaf).max()) > 1e-5 for leaf in leaves)


def test_a_layer_without_bias_has_none():
    layer, x = ExpertDense(2, use_bias=False), jnp.ones((3, 5, 4))
    params = layer.init(KEY, x)["params"]
    assert list(params) == ["kernel"]
    np.testing.assert_allclose(
        layer.apply({"params": params}, x), x @ params["kernel"], rtol=1e-5
    )
