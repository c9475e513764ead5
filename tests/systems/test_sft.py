"""SFT (arXiv 2211.16703): what its cut inside of a layer promises, on a tiny BERT.

Learning is no test of it: a toy learns as well through a random code as through one of
singular vectors. What discriminates is invariance, and the gradient. What crosses the
link, and the way back to a dense model, are in test_sft_wire.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import ragged
from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.core.stage import join
from splitjax.core.tree import spec_of
from splitjax.factors.low_rank import fit, squeeze_params
from splitjax.metrics.loss import cross_entropy
from splitjax.models import heads
from splitjax.models.bert import bert
from splitjax.models.bert_config import BertConfig
from splitjax.models.squeeze import Squeeze

CONFIG = BertConfig(
    vocab=50,
    width=16,
    heads=4,
    layers=2,
    ffn=24,
    positions=20,
    dropout=0.0,
    attention_dropout=0.0,
    init_std=0.3,
)
B, T, RANK = 4, 7, 3
TARGET = {"y": jnp.array([0, 1, 1, 0]), "n_valid": jnp.int32(4)}


def model(config=CONFIG, **kwargs):
    return bert(config, heads.classification(2, dropout=0.0), **kwargs)


@functools.cache
def dense():
    """A fresh model's parameters and a batch without padding."""
    key = jax.random.key(0)
    ids = jax.random.randint(key, (B, T), 3, CONFIG.vocab)
    x = {"ids": ids, "mask": jnp.ones((B, T), bool)}
    init = join(model()).init
    return jax.jit(lambda key: init(key, spec_of(x)))(key)[0], x


def parted(params, layer, rank=RANK, **kwargs):
    """The parameters with one feed-forward block parted."""
    params = dict(params)
    edge, cloud = squeeze_params(params.pop(f"layer_{layer}/ffn"), rank, **kwargs)
    return {**params, f"layer_{layer}/squeeze": edge, f"layer_{layer}/expand": cloud}


@functools.cache
def program(stages):
    whole = join(stages)
    state = {stage.name: {} for stage in stages}
    return jax.jit(lambda p, x: whole.apply(p, state, x, key=None, train=False)[0])


def run(stages, params, x):
    return program(tuple(stages))({s.name: params[s.name] for s in stages}, x)


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_eckart_young(rank):
    w = dense()[0]["layer_1/ffn"]["wi"]["kernel"]
    factor = jax.tree.map(np.float64, fit(w, rank))
    values = np.linalg.svd(np.float64(w), compute_uv=False)
    left_out = np.square(w - factor.v @ factor.s @ factor.u).sum()
    # At full rank only the rounding of the factors to float32 is left.
    floor = 1e-12 * np.square(values).sum()
    want = np.square(values[rank:]).sum()
    np.testing.assert_allclose(left_out, want, rtol=1e-5, atol=floor)


@pytest.mark.parametrize("skip", [None, "keep"])
def test_the_forward_pass_is_that_of_the_nearest_matrix_of_the_rank(skip):
    params, x = dense()
    stages = model(squeeze={1: Squeeze(RANK, skip=skip)})
    got = run(stages, parted(params, 1, skip=skip), x)
    block = params["layer_1/ffn"]
    left, values, right = np.linalg.svd(np.float64(block["wi"]["kernel"]))
    best = (left[:, :RANK] * values[:RANK]) @ right[:RANK]
    block = {**block, "wi": {**block["wi"], "kernel": jnp.float32(best)}}
    skipless = dataclasses.replace(CONFIG, skipless=() if skip else (1,))
    want = run(model(skipless), {**params, "layer_1/ffn": block}, x)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(got - run(model(), params, x)).max() > 0.01


@pytest.mark.parametrize("layer", range(CONFIG.layers))
def test_full_rank_with_its_skip_is_the_untouched_model(layer):
    params, x = dense()
    full = min(CONFIG.width, CONFIG.ffn)
    stages = model(squeeze={layer: Squeeze(full, skip="keep")})
    got = run(stages, parted(params, layer, full, skip="keep"), x)
    # The logits are of size 1, and the product is summed in another order.
    np.testing.assert_allclose(got, run(model(), params, x), atol=2e-6)


def test_what_v_does_not_see_does_not_pass(key):
    """A skip connection that was left in would let it through."""
    params, x = dense()
    a, hidden = np.float64(jax.random.normal(key, (2, B, T, CONFIG.width)))
    change = {}
    for skip in (None, "keep"):
        stages = model(squeeze={1: Squeeze(RANK, skip=skip)})
        block = [s for s in stages if s.name in ("layer_1/squeeze", "layer_1/expand")]
        own = parted(params, 1, skip=skip)
        # V as it is after some training: its columns are not orthonormal.
        v = own["layer_1/squeeze"]["v"]["kernel"] + 0.1
        own["layer_1/squeeze"]["v"]["kernel"] = v
        null = hidden - hidden @ v @ np.linalg.pinv(np.float64(v))
        assert np.abs(null).max() > 1
        one, two = (
            run(block, own, {"h": jnp.float32(h), "mask": x["mask"]})["h"]
            for h in (a, a + null)
        )
        change[skip] = np.abs(one - two).max()
    # a and a + null are rounded to float32; the outputs are of size 1.
    assert change[None] < 1e-5 and change["keep"] > 0.1


@pytest.mark.parametrize("layer", range(CONFIG.layers))
def test_the_gradient_of_the_code_is_all_that_the_edge_needs(layer):
    params, x = dense()
    params = parted(params, layer)
    stages = model(squeeze={layer: Squeeze(RANK)})
    made = cut(stages, after=f"layer_{layer}/squeeze")
    split = Split(made, (Link(ragged(), chain()),), cross_entropy)
    state = made.partition({stage.name: {} for stage in stages})
    own = made.partition(params)
    links = split.init_links(own, state, spec_of(x))
    how = {"links": links, "key": None}

    @jax.jit
    def cloud(params, code):
        visit = split.forward(1, params, state[1], code, target=TARGET, **how)
        return split.pull(1, params, visit.residuals, None)

    @jax.jit
    def edge(params, x, g):
        def code(params):
            return split.forward(0, params, state[0], x, **how).out.tree["h"].buffer

        return jax.vjp(code, params)[1](g)[0]

    def fused(params):
        return cross_entropy(program(stages)(params, x), TARGET)[0]

    code = jax.jit(lambda p, x: split.forward(0, p, state[0], x, **how).out)(own[0], x)
    grads, gradient = cloud(own[1], code)
    g = gradient.tree["h"].buffer
    assert g.shape == (B * T, RANK)
    assert [leaf.shape for leaf in jax.tree.leaves(gradient)] == [g.shape]
    want = jax.grad(fused)(params)
    got = {**grads, **edge(own[0], x, g)}

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    jax.tree.map(close, got, {name: want[name] for name in got})
    ds = np.asarray(got[f"layer_{layer}/squeeze"]["s"]["kernel"])
    assert np.abs(ds - np.diag(np.diag(ds))).max() > 0.1 * np.abs(ds).max() > 0
