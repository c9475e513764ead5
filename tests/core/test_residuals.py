"""What a party keeps between its two visits must not keep its parameters alive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.residuals import restore, strip
from splitjax.core.split import Split
from splitjax.core.tree import spec_of
from splitjax.models.bert import bert
from splitjax.models.bert_config import BertConfig
from splitjax.models.squeeze import Squeeze

PARAMS = {"a": {"kernel": jnp.ones((5, 7)) / 3, "bias": jnp.ones(7)}, "b": jnp.ones(7)}


def model(params, x):
    y = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    return y * params["b"][None]


@jax.jit
def forward(params, x):
    y, pull = jax.vjp(model, params, x)
    return y, strip(pull, params)


@jax.jit
def backward(residuals, params, g):
    return restore(residuals, params)(g)


@pytest.fixture
def x(key):
    return jax.random.normal(key, (3, 5))


def test_the_gradient_is_the_same_on_the_other_side_of_jit(x):
    y, kept = forward(PARAMS, x)
    g = jnp.cos(y)
    want = jax.jit(lambda p, x, g: jax.vjp(model, p, x)[1](g))(PARAMS, x, g)
    jax.tree.map(np.testing.assert_array_equal, backward(kept, PARAMS, g), want)


def test_no_parameter_is_among_the_leaves_kept(x):
    _, kept = forward(PARAMS, x)
    shapes = [leaf.shape for leaf in kept.leaves if leaf is not None]
    assert (5, 7) not in shapes and (7,) not in shapes
    # The input's gradient needs the kernel: it is put back by its number.
    assert {place for place in kept.places if place >= 0} == {1}
    assert [leaf is None for leaf in kept.leaves] == [n >= 0 for n in kept.places]


def test_without_strip_they_would_be(x):
    """The check above can fail."""
    kept = jax.jit(lambda p, x: jax.vjp(model, p, x)[1])(PARAMS, x)
    assert (5, 7) in [leaf.shape for leaf in jax.tree.leaves(kept)]


def test_other_parameters_may_be_put_back(x):
    """The places are the parameters': so `pull` asks for those of the pass."""
    y, kept = forward(PARAMS, x)
    double = {**PARAMS, "a": {**PARAMS["a"], "kernel": 2 * PARAMS["a"]["kernel"]}}
    one, two = (backward(kept, p, jnp.ones_like(y))[1] for p in (PARAMS, double))
    np.testing.assert_allclose(two, 2 * one, rtol=1e-6)


def test_a_scalar_and_an_unused_parameter(x):
    def scale(params, x):
        return x * params["k"]

    params = {"k": jnp.float32(3), "unused": jnp.ones(2)}
    kept = jax.jit(lambda p, x: strip(jax.vjp(scale, p, x)[1], p))(params, x)
    grads, back = restore(kept, params)(jnp.ones_like(x))
    assert grads["unused"].tolist() == [0, 0]
    np.testing.assert_allclose(grads["k"], x.sum(), rtol=1e-5)
    assert (back == 3).all()


def test_segments_of_a_bert_keep_no_kernel(key):
    """Odd sizes, so that a shape tells what an array is."""
    config = BertConfig(vocab=50, width=12, heads=2, layers=2, ffn=20, positions=9)
    split = Split(
        cut(bert(config, squeeze={1: Squeeze(3)}), after="layer_1/squeeze"),
        (Link(chain(), chain()),),
        lambda y, t: (jnp.square(y["h"]).sum(), {}),
    )
    x = {"ids": jnp.ones((5, 7), jnp.int32), "mask": jnp.ones((5, 7), bool)}
    params, state = jax.eval_shape(lambda k: split.init(k, spec_of(x)), key)
    links = split.init_links(params, state, spec_of(x))

    def run(params, x):
        first = split.forward(0, params[0], state[0], x, links=links, key=key)
        second = split.forward(
            1, params[1], state[1], first.out, links=links, key=key, target=0
        )
        return first.residuals, second.residuals

    kept = jax.eval_shape(run, params, x)
    kernels = {leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 2}
    found = {leaf.shape for leaf in jax.tree.leaves(kept)}
    assert (12, 20) in kernels and (3, 20) in kernels
    assert (5, 7, 12) in found and (5, 7, 20) in found
    assert not kernels & found
