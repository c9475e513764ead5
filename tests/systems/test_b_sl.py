"""B-SL (arXiv 2206.04864): a binary edge, one bit a value, randomized response.

Accuracy of a toy says little; bytes, flip rates and what an attack has left do. FSHA is
in tests/privacy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.codecs import (
    Context,
    Link,
    binary,
    identity,
    nonfinite,
    quantize,
    randomize,
    scaled_sign,
    sign,
    wire_bytes,
)
from splitjax.codecs.pack import pack_bits, unpack_bits
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.core.straight_through import ste_sign
from splitjax.core.tree import where
from splitjax.models.binary_dense import binary_mlp
from splitjax.models.mlp import mlp
from splitjax.optim import clip_latent
from splitjax.privacy import (
    distance_correlation,
    guarded,
    leak_loss,
    ridge_inversion,
    sign_entropy,
    variance_left,
)
from splitjax.runtime import frame
from tests.systems.digits import accuracy, data, fit, loss

MADE = cut((*binary_mlp([512]), *mlp([10])), after="binary_0")
FLOAT = cut(mlp([512, 10]), after="dense_0")
TX = optax.chain(optax.adam(3e-3), optax.masked(clip_latent(), where(".*/latent")))


def send(codec, x, **ctx):
    message, tx = codec.encode(x, codec.init(x), Context(**ctx))
    return message, codec.decode(message, codec.init(x))[0], tx


@pytest.mark.parametrize("batch, width", [(32, 512), (3, 13), (1, 7)])
def test_the_uplink_is_one_bit_a_value(batch, width, key):
    """ceil(B D / 8) bytes, which decode to exactly 1 or -1 as the sign was."""
    x = jax.random.normal(key, (batch, width)).at[0, 0].set(0.0)
    message, y, _ = send(binary(), x)
    assert frame.payload_bytes(message) == wire_bytes(binary(), x) == -(-x.size // 8)
    np.testing.assert_array_equal(y, np.where(np.asarray(x) < 0, -1.0, 1.0))


@pytest.mark.parametrize("n", [1, 7, 8, 9, 513])
def test_unpacking_undoes_packing(n, key):
    bits = jax.random.bernoulli(key, 0.5, (3, n)).astype(jnp.uint8)
    np.testing.assert_array_equal(unpack_bits(pack_bits(bits, 1), 1, n), bits)


def test_the_gradient_at_the_edge_is_zero_where_the_sign_is_sure(key):
    """g * 1[|pre| <= 1], with g as the cloud's message gives it, through a split."""
    pre = jnp.array([[-3.0, -1.0, -0.2, 0.0, 0.9, 1.0, 1.1]])
    g = jax.random.normal(key, pre.shape)
    _, pull = jax.vjp(ste_sign, pre)
    np.testing.assert_array_equal(pull(g)[0], jnp.where(jnp.abs(pre) <= 1, g, 0.0))

    def through(codec):
        split = Split(cut(mlp([4, 3]), after="dense_0"), (codec,), loss)
        params, state = split.init(key, pre)
        links = split.init_links(params, state, pre)
        run = jax.jit(split.value_and_grad)
        return run(params, state, links, pre, jnp.zeros(1, jnp.int32))[1]

    # The 1-bit packing is rough: it changes no gradient.
    whole, packed = (
        through(Link(sign(), identity())),
        through(Link(binary(), identity())),
    )
    jax.tree.map(np.testing.assert_array_equal, whole, packed)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0])
def test_flip_rate_and_likelihood_ratio(epsilon, key):
    """p = 1 / (1 + e^eps) within 3 deviations, for both signs; the ratio of the two
    likelihoods of any output is e^eps at most, within what chance allows."""
    n, p = 400_000, 1 / (1 + np.exp(epsilon))
    x = jnp.stack([jnp.ones(n), -jnp.ones(n)])
    sent = np.asarray(send(randomize(epsilon), x, key=key)[1])
    plus = (sent > 0).mean(1)  # P(1 | 1), P(1 | -1)
    deviation = np.sqrt(p * (1 - p) / n)
    np.testing.assert_allclose(plus, [1 - p, p], atol=3 * deviation)
    slack = 1 + 4 * deviation / p
    for high, low in ((plus[0], plus[1]), (1 - plus[1], 1 - plus[0])):
        assert np.exp(epsilon) / slack < high / low < np.exp(epsilon) * slack


@pytest.mark.parametrize("epsilon", [0.1, 3.0, 21.0, 23.0, 800.0])
def test_the_probability_is_never_rounded_down(epsilon, monkeypatch):
    """Else the ratio could exceed e^eps: the threshold on 32 bits is at least p."""
    seen = []

    def bits(key, shape, dtype):
        counts = np.array([0, 1, 2**20, 2**31], np.uint32)
        return jnp.asarray(counts)

    monkeypatch.setattr(jax.random, "bits", bits)
    x = jnp.ones(4)
    message, _ = randomize(epsilon).encode(x, (), Context(jax.random.key(0)))
    seen = np.asarray(message.node) < 0
    p = np.exp(-np.logaddexp(0, epsilon))
    assert seen[0]  # the least number always flips: p is never zero
    for value, flipped in zip((1, 2**20, 2**31), seen[1:], strict=True):
        if value < p * 2**32:
            assert flipped
        elif value >= p * 2**32 + 1:
            assert not flipped


def trained(link, made=MADE, tx=TX, **more):
    return fit(made, link, tx=tx, **more)


def test_digits_with_a_binary_edge_are_near_floats():
    """One bit up and one bit down; the latent weights stay within [-1, 1]."""
    link = Link(binary(), scaled_sign())
    params, state = trained(link, epochs=10)
    latent = params[0]["binary_0"]["product"]["latent"]
    assert float(jnp.abs(latent).max()) <= 1 < len(np.unique(np.abs(latent)))
    assert accuracy(MADE, link, params, state) > 0.98 - 0.03  # floats: .984


@pytest.mark.slow
def test_every_gradient_codec_is_near_floats():
    floats = accuracy(FLOAT, whole := Link(identity(), identity()), *fit(FLOAT, whole))
    for backward in (identity(), quantize(8), scaled_sign(), scaled_sign("channel")):
        link = Link(binary(), backward)
        assert accuracy(MADE, link, *trained(link)) > floats - 0.03


def inverted(z, seen, x, test):
    """What least squares (a ridge of 1) leaves of the pixels' variance."""
    z_mean, x_mean = z.mean(0), x.mean(0)
    square = (z - z_mean).T @ (z - z_mean) + np.eye(z.shape[1])
    weights = np.linalg.solve(square, (z - z_mean).T @ (x - x_mean))
    return variance_left(test, x_mean + (seen - z_mean) @ weights)


@pytest.mark.slow
def test_inversion_has_more_error_the_more_bits_flip(key):
    """The sheet's 8, 10, 24 and 60 % at no, 4, 2 and 1 epsilon a bit, within a fifth.

    Signs alone are a weak defense; and an attacker who tunes its ridge does better than
    the sheet's.
    """
    (x, _), (test, _) = data()
    x, test = x.astype(np.float64), test.astype(np.float64)
    found, tuned = [], []
    for epsilon in (None, 4.0, 2.0, 1.0):
        left = []
        for seed in (3, 4):
            w = np.asarray(jax.random.normal(jax.random.key(seed), (64, 512)))
            codec = sign() if epsilon is None else randomize(epsilon)
            pairs = []
            for name, a in (("known", x), ("seen", test)):
                k = jax.random.fold_in(key, len(name))
                pairs.append(
                    np.float64(send(codec, jnp.asarray(a @ w, jnp.float32), key=k)[1])
                )
            left.append(inverted(*pairs, x, test))
        found.append(np.mean(left))
        attack = ridge_inversion(pairs[0], x)
        tuned.append(float(variance_left(test, attack(pairs[1]))))
    np.testing.assert_allclose(found, [0.078, 0.10, 0.24, 0.60], rtol=0.2)
    assert (np.diff(tuned) > 0).all() and (np.array(tuned[1:]) < found[1:]).all()


@pytest.mark.slow
def test_the_leak_loss_lowers_the_correlation_with_alpha(capsys):
    """Monotonically; the accuracy is printed. A huge alpha leaves constant bits."""
    (x, _), (test, _) = data()
    link, rows = Link(binary(), identity()), []
    for alpha in (0.0, 0.3, 3.0):
        made = guarded(MADE, leak_loss(alpha))
        params, state = trained(link, made, epochs=10)
        z, _, _ = made.segments[0].apply(
            params[0], state[0], jnp.asarray(test), key=None, train=False
        )
        found = float(distance_correlation(jnp.asarray(test), z))
        hits, entropy = accuracy(made, link, params, state), float(sign_entropy(z))
        rows.append((found, f"{alpha=} {found=:.3f} {hits=:.3f} {entropy=:.3f}"))
    with capsys.disabled():
        print("", *(text for _, text in rows), sep="\n")
    correlations = [found for found, _ in rows]
    assert correlations == sorted(correlations, reverse=True)
    assert correlations[-1] < correlations[0] - 0.02


# Bad inputs


def test_zero_nan_and_infinity_have_signs_and_are_counted():
    x = jnp.array([[0.0, -0.0, jnp.nan, jnp.inf, -jnp.inf]])
    _, y, tx = send(binary(), x)
    assert y.tolist() == [[1, 1, 1, 1, -1]] and int(nonfinite(tx)) == 3
    g = jax.grad(lambda a: jnp.sum(ste_sign(a)))(x)
    assert g.tolist() == [[1, 1, 0, 0, 0]]


@pytest.mark.parametrize(
    "x", [jnp.zeros((3, 5)), jnp.full((3, 5), 7.0)], ids=["0", "7"]
)
def test_constant_features_are_constant_bits(x):
    """All ones, and no entropy: a code that has collapsed shows."""
    _, y, tx = send(binary(), x)
    assert (np.asarray(y) == 1).all() and int(nonfinite(tx)) == 0
    assert float(sign_entropy(y)) == 0


@pytest.mark.parametrize("shape", [(0, 8), (4, 0)], ids=str)
def test_empty_arrays_are_empty(shape):
    message, y, _ = send(binary(), jnp.zeros(shape))
    assert y.shape == shape and frame.payload_bytes(message) == 0
