import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax import codecs
from splitjax.core.codec import Context, Link, chain
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.metrics.loss import cross_entropy
from splitjax.models.mlp import mlp
from splitjax.privacy.fsha import imitation
from splitjax.privacy.wiretap import wiretap

X = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
TARGET = {"y": jnp.arange(8) % 3, "n_valid": jnp.int32(8)}
KEY = jax.random.key(3)


def tapped(forward, backward=None, *, frozen=0, after="dense_0", target=TARGET):
    made = cut(mlp([8, 5, 3]), after=after)
    link = Link(forward, backward or chain())
    links = (link,) * (len(made.segments) - 1)
    split = Split(made, links, cross_entropy, frozen)
    params, state = split.init(jax.random.key(0), X)
    ends = split.init_links(params, state, X)

    @jax.jit
    def run(params, ends):
        return wiretap(split, params, state, ends, X, target, key=KEY)

    h, _, _ = made.segments[0].apply(params[0], state[0], X, key=None, train=False)

    def loss(h):
        y, _, _ = made.segments[1].apply(params[1], state[1], h, key=None, train=False)
        return cross_entropy(y, TARGET)[0]

    return run(params, ends), np.asarray(h), loss


@pytest.mark.parametrize(
    "smooth", [chain(), codecs.c3(2), codecs.sign()], ids=lambda codec: codec.name
)
def test_both_directions_are_what_arrives_for_each_example(smooth):
    seen, h, loss = tapped(smooth)
    constants = smooth.init(h)

    def through(h):
        m, _ = smooth.encode(h, constants, Context(None, None, False))
        return smooth.decode(m, constants)[0]

    np.testing.assert_allclose(seen.forward[0], jax.jit(through)(h), atol=1e-5)
    slope = jax.jit(jax.grad(lambda h: loss(through(h))))(h)
    np.testing.assert_allclose(seen.backward[0], slope, atol=1e-6)
    assert float(jnp.abs(slope).max()) > 1e-3


def test_rough_codecs_and_noise_shape_what_is_seen():
    seen, h, _ = tapped(codecs.quantize(2), codecs.top_k(0.2))
    step = np.ptp(h, axis=1, keepdims=True) / 3
    assert 0 < np.abs(seen.forward[0] - h).max() <= 0.52 * step.max()
    assert 0 < (np.asarray(seen.backward[0]) != 0).mean() <= 0.26
    noisy, _, _ = tapped(codecs.perturb("gauss", scale=1.0, clip=1.0))
    assert np.abs(noisy.forward[0] - h).std() > 0.5


def test_a_memory_of_examples_is_neither_read_nor_written():
    seen, h, _ = tapped(codecs.delta(codecs.quantize(4)))
    assert np.abs(seen.forward[0] - h).max() < 0.5


def test_nothing_is_seen_of_what_is_not_sent():
    seen, _, _ = tapped(chain(), frozen=1)
    assert seen.backward == (None,)
    seen, _, _ = tapped(chain(), target=None)
    assert seen.backward == (None,)


def test_in_a_u_the_gradient_of_the_logits_is_seen():
    seen, _, _ = tapped(chain(), after=("dense_0", "head"))
    logits, slope = seen.forward[1], seen.backward[1]
    expected = (jax.nn.softmax(logits) - jax.nn.one_hot(TARGET["y"], 3)) / 8
    np.testing.assert_allclose(slope, expected, atol=1e-6)


def test_an_imitation_sends_what_the_codec_does_and_learns_through_it():
    codec = chain(codecs.sign(), codecs.randomize(1.0), codecs.pack_signs())
    code = jnp.linspace(-2, 2, 4000).reshape(10, 400)
    imitate = jax.jit(imitation(codec, code))
    made = imitate(KEY, code)
    flipped = float((made != jnp.where(code < 0, -1, 1)).mean())
    assert abs(flipped - 1 / (1 + np.e)) < 0.03
    slope = jax.grad(lambda a: imitate(KEY, a).sum())(code)
    np.testing.assert_array_equal(slope, np.abs(code) <= 1)
