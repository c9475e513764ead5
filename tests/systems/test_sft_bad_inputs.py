"""SFT: what cannot be parted is refused with a name, and what is odd stays finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import ragged
from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.core.stage import Stage, join
from splitjax.core.tree import spec_of
from splitjax.factors.low_rank import fit, merge, squeeze_params
from splitjax.metrics.loss import cross_entropy
from splitjax.models import heads
from splitjax.models.bert import bert, ffn
from splitjax.models.bert_config import BertConfig
from splitjax.models.squeeze import Squeeze, squeezed

CONFIG = BertConfig(vocab=50, width=8, heads=2, layers=2, ffn=12, positions=10)
W = jax.random.normal(jax.random.key(3), (8, 12))


def model(squeeze=None, **kwargs):
    head = heads.classification(2)
    return bert(CONFIG, head, squeeze={1: squeeze or Squeeze(4)}, **kwargs)


def gradient(lengths, steps, **kwargs):
    """The loss of one batch and its gradient through the cut."""
    stages = model(**kwargs)
    split = Split(
        cut(stages, after="layer_1/squeeze"), (Link(ragged(), chain()),), cross_entropy
    )
    mask = jnp.arange(steps)[None] < jnp.array(lengths, jnp.int32)[:, None]
    x = {"ids": jnp.full(mask.shape, 7, jnp.int32), "mask": mask}
    target = {"y": jnp.zeros(len(lengths), jnp.int32), "n_valid": jnp.int32(1)}

    @jax.jit
    def run(key):
        params, state = split.init(key, spec_of(x))
        links = split.init_links(params, state, spec_of(x))
        return split.value_and_grad(params, state, links, x, target, key=key)

    (value, _), grads = run(jax.random.key(0))
    return value, grads


def finite(tree):
    return all(np.isfinite(np.float32(leaf)).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("rank", [0, -1, 9])
def test_a_rank_outside_of_the_range(rank):
    with pytest.raises(ValueError, match=rf"rank {rank} .*\(8, 12\).* 1 to 8"):
        fit(W, rank)
    with pytest.raises(ValueError, match=f"rank {rank} of 'layer_1/ffn'"):
        model(Squeeze(rank))


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (jnp.zeros((8, 12)), "all zeros"),
        (W.at[3, 4].set(jnp.nan), "NaN or infinity"),
        (W.at[3, 4].set(-jnp.inf), "NaN or infinity"),
        (W[0], r"a matrix; this leaf is \(12,\)"),
        (jnp.ones((8, 12), jnp.int8), "floats.*int8"),
    ],
    ids=["zero", "nan", "inf", "vector", "quantized"],
)
def test_a_weight_that_has_no_decomposition(kernel, words):
    with pytest.raises(ValueError, match=words):
        fit(kernel, 4)


def test_a_factor_is_decomposed_as_its_dense_leaf():
    factor = fit(W, 4)
    again = fit(factor, 3)
    want = fit(factor.materialize(), 3).materialize()
    np.testing.assert_allclose(again.materialize(), want, atol=1e-6)


def test_a_weight_of_lower_rank_than_asked_for():
    low = W[:, :2] @ W[:2, :]
    factor = fit(low, 4)
    assert finite(factor)
    np.testing.assert_allclose(factor.materialize(), low, atol=1e-5)


def test_a_bfloat16_weight():
    """It is decomposed in float64; only the factors are rounded."""
    factor = fit(W.astype(jnp.bfloat16), 8)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(factor)} == {"bfloat16"}
    # Three factors, each rounded to 8 bits, of a kernel with values up to 3.
    made = np.float32(factor.v) @ np.float32(factor.s) @ np.float32(factor.u)
    np.testing.assert_allclose(
        made, W.astype(jnp.bfloat16).astype(jnp.float32), atol=0.03
    )


@pytest.mark.parametrize("tag", ["pre_ln_ffn", "gated_ffn"])
def test_blocks_of_another_kind(tag):
    block = ffn(CONFIG, 1)
    other = Stage("layer_1/ffn", block.init, block.apply, tags=frozenset({tag}))
    with pytest.raises(ValueError, match="lacks the tag 'post_ln_ffn'"):
        squeezed(other, CONFIG, Squeeze(4))


@pytest.mark.parametrize("layer", [-1, 2, "1"])
def test_a_layer_outside_of_the_model(layer):
    with pytest.raises(ValueError, match="the layers are 0 to 1"):
        bert(CONFIG, squeeze={layer: Squeeze(4)})


@pytest.mark.parametrize(
    "lengths", [[5, 0, 3], pytest.param([0, 0, 0], marks=pytest.mark.slow)], ids=str
)
def test_rows_of_padding_alone_stay_finite(lengths):
    value, grads = gradient(lengths, 5)
    assert np.isfinite(value) and finite(grads)


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)]
)
def test_low_precision_trains(dtype):
    value, grads = gradient([5, 2], 5, dtype=dtype)
    assert np.isfinite(value) and finite(grads)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(grads)} == {"float32"}


def test_a_sequence_longer_than_the_model():
    with pytest.raises(ValueError, match="11 tokens do not fit 10 positions"):
        gradient([11], 11)


@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0, 0)], ids=str)
def test_no_tokens_and_no_rows(shape):
    stages = join(bert(CONFIG, heads.embedding(), squeeze={1: Squeeze(4)}))
    x = {"ids": jnp.zeros(shape, jnp.int32), "mask": jnp.zeros(shape, bool)}

    @jax.jit
    def run(key):
        params, state = stages.init(key, spec_of(x))
        return stages.apply(params, state, x, key=None, train=False)[0]

    assert np.array_equal(run(jax.random.key(0)), np.zeros((shape[0], 8)))


@pytest.mark.parametrize("kwargs", [{"skip": 2}, {"mode": "pca"}], ids=str)
def test_what_has_no_dense_block_is_not_merged(kwargs):
    norm = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
    block = {
        "wi": {"kernel": W, "bias": jnp.zeros(12)},
        "wo": {"kernel": W.T, "bias": jnp.zeros(8)},
        "norm": norm,
    }
    width = kwargs.get("skip", 4)
    with pytest.raises(ValueError, match=rf"needs .* a basis \(8, {width}\)"):
        squeeze_params(block, 4, **kwargs)
    parts = squeeze_params(block, 4, mean=np.zeros(8), basis=np.eye(8, width), **kwargs)
    with pytest.raises(ValueError, match="no dense block"):
        merge(*parts)
