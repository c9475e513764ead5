"""C3-SL (arXiv 2207.12397): what its convolution promises, and what it does not.

A toy that reconstructs well is wrong: the law says that the error is as large as the
signal and larger. What discriminates is that law, adjointness and the seed of the keys.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import Context, Link, c3, chain, identity, nonfinite, wire_bytes
from splitjax.core.cut import cut
from splitjax.core.message import tree_bytes
from splitjax.core.split import Split
from splitjax.core.stage import Stage
from splitjax.core.tree import spec_of
from splitjax.models.mlp import mlp
from tests.systems.digits import accuracy, fit, loss

D = 4096


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def send(codec, x):
    state = codec.init(x)
    message, tx = jax.jit(codec.encode)(x, state, Context())
    return message, jax.jit(codec.decode)(message, state)[0], tx


def error(y, x):
    """|y - x|^2 / |x|^2 of each row."""
    y, x = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (y, x))
    return np.square(y - x).sum(1) / np.square(x).sum(1)


SLOW = [pytest.param(r, marks=pytest.mark.slow) for r in (2, 8)]


@pytest.mark.parametrize("ratio", [1, 4, 16, *SLOW])
@pytest.mark.parametrize("keys", ["gauss", "unitary"])
def test_nmse_law(keys, ratio):
    """NMSE is R with Gaussian keys and R - 1 with unitary ones; so goes the cosine."""
    x = normal(64, D)
    _, y, _ = send(c3(ratio, keys=keys), x)
    law = ratio if keys == "gauss" else ratio - 1
    np.testing.assert_allclose(error(y, x).mean(), law, rtol=0.05, atol=1e-6)
    norms = jnp.linalg.norm(x, axis=1) * jnp.linalg.norm(y, axis=1)
    cosine = jnp.mean(jnp.sum(x * y, 1) / norms)
    np.testing.assert_allclose(cosine, 1 / np.sqrt(1 + law), rtol=0.03)


@pytest.mark.parametrize(
    "shape, center", [((8, 512), False), ((6, 3, 5, 7), True)], ids=str
)
def test_decode_is_the_adjoint_of_encode(shape, center):
    """<enc z, v> = <z, dec v>, and the gradient of the message is enc(gradient)."""
    codec = c3(4, keys="unitary", center=center)
    z, g = normal(*shape), normal(*shape, seed=2)
    state = codec.init(z)
    message, _ = codec.encode(z, state, Context())
    v = jax.tree.map(lambda a: normal(*a.shape, seed=a.ndim), message)
    back, _ = codec.decode(v, state)
    pairs = zip(jax.tree.leaves(message), jax.tree.leaves(v), strict=True)
    one = sum(float(jnp.vdot(a, b)) for a, b in pairs)
    size = float(jnp.linalg.norm(z.ravel()) * jnp.linalg.norm(back.ravel()))
    assert abs(one - float(jnp.vdot(z, back))) < 1e-5 * size
    (wire,) = jax.vjp(lambda m: codec.decode(m, state)[0], message)[1](g)
    expected, _ = codec.encode(g, state, Context())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), wire, expected
    )


@pytest.mark.parametrize("width", [96, 97])
def test_fft_is_the_circular_convolution(width):
    """Each value by the definition: s_n = sum_i sum_m k_i[m] z_i[n - m mod D]."""
    codec, z = c3(3), np.asarray(normal(3, width), np.float64)
    state = codec.init(jnp.asarray(z, jnp.float32))
    real, imaginary = np.asarray(state["keys"][str(width)], np.float64)
    keys = np.fft.irfft(real + 1j * imaginary, n=width)
    n = np.arange(width)
    direct = sum(keys[i] @ z[i][(n[None] - n[:, None]) % width] for i in range(3))
    message, y, _ = send(codec, jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(message.node.code[0], direct, atol=1e-4)
    back = [direct @ keys[i][(n[:, None] - n[None]) % width] for i in range(3)]
    np.testing.assert_allclose(y, back, atol=1e-4)


@pytest.mark.parametrize("batch, ratio", [(64, 16), (7, 4), (3, 8), (1, 4)])
def test_bytes_shrink_by_the_groups_in_both_directions(batch, ratio):
    """B / ceil(B / R), whether R divides B, or is larger; the backward wire too."""
    stages, x = mlp([32, 3]), normal(batch, 5)
    split = Split(cut(stages, after="dense_0"), (Link(c3(ratio), identity()),), loss)
    groups = -(-batch // ratio)
    spec = jax.ShapeDtypeStruct((batch, 32), jnp.float32)
    assert wire_bytes(c3(ratio), spec) == groups * 32 * 4

    seen = {}

    def encode(g, state, ctx):
        seen["down"] = tree_bytes(g)
        return g, state

    spy = dataclasses.replace(identity(), encode=encode)
    split = dataclasses.replace(split, links=(Link(c3(ratio), spy),))
    params, state = split.init(jax.random.key(0), x)
    links = split.init_links(params, state, x)
    y = jnp.zeros(batch, jnp.int32)
    jax.eval_shape(split.value_and_grad, params, state, links, x, y)
    assert seen["down"] == groups * 32 * 4


def test_a_row_depends_on_its_group_and_on_its_place():
    x = normal(8, 512)
    _, y, _ = send(c3(4), x)
    order = jnp.array([0, 5, 2, 3, 4, 1, 6, 7])
    _, z, _ = send(c3(4), x[order])
    moved = error(z, y)
    assert (moved[[0, 2, 3, 4, 6, 7]] > 0.1).all()  # the same rows, other neighbors


def test_keys_of_another_seed_decode_nothing():
    codec, other, x = c3(1, keys="unitary"), c3(1, keys="unitary", seed=1), normal(8, D)
    message, y, _ = send(codec, x)
    wrong, _ = codec.decode(message, other.init(x))
    assert error(y, x).max() < 1e-6
    cosine = jnp.sum(wrong * x, 1) / jnp.square(jnp.linalg.norm(x, axis=1))
    assert jnp.abs(cosine).max() < 0.08  # five deviations of chance


MADE = cut(mlp([512, 10]), after="dense_0")


def test_digits_are_learned_through_the_noise_of_known_keys():
    """The sheet's .95 to .97 at R = 4, D = 512; with other keys a cloud sees chance."""
    codec = c3(4)
    trained = fit(MADE, Link(codec, identity()))
    assert accuracy(MADE, Link(codec, identity()), *trained) > 0.91

    def decode(message, state):
        return codec.decode(message, c3(4, seed=1).init(jnp.zeros((1, 512))))

    torn = Link(dataclasses.replace(codec, decode=decode), identity())
    assert accuracy(MADE, torn, *trained) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize(
    "codec, low, high",
    [
        (identity(), 0.98, 1.0),
        (c3(2), 0.97, 0.98),
        (c3(4), 0.95, 0.97),
        (c3(8), 0.92, 0.94),
        (c3(16), 0.79, 0.86),
        (c3(4, keys="unitary"), 0.96, 0.97),
        (c3(16, keys="unitary"), 0.86, 0.88),
    ],
    ids=lambda a: getattr(a, "name", ""),
)
def test_digits_at_every_ratio(codec, low, high):
    link = Link(codec, identity())
    found = accuracy(MADE, link, *fit(MADE, link))
    assert low - 0.04 <= found <= high + 0.04


# Bad inputs


def test_padding_of_the_last_group_never_reaches_a_norm_or_loss():
    """5 rows in groups of 4: the receiver has 5, and their statistics are theirs."""
    x = normal(5, 32) + 3.0
    _, y, _ = send(c3(4, keys="unitary"), x)
    assert y.shape == x.shape
    # Alone in its group, the last row is exact: the rows that fill it up are zeros.
    np.testing.assert_allclose(y[4], x[4], atol=1e-5)
    seen = Stage(
        "seen",
        init=lambda key, spec: ({}, {"mean": jnp.zeros(spec.shape[1:])}),
        apply=lambda p, s, x, *, key, train: (x, {"mean": x.mean(0)}, {}),
    )
    edge = dataclasses.replace(mlp([32])[0], name="edge")
    made = cut((edge, seen, *mlp([3])), after="edge")
    split = Split(made, (Link(c3(4, keys="unitary"), identity()),), loss)
    params, state = split.init(jax.random.key(0), x)
    links = split.init_links(params, state, x)
    target = jnp.zeros(5, jnp.int32)
    run = jax.jit(split.value_and_grad)
    (_, extra), _ = run(params, state, links, x, target)
    z = made.segments[0].apply(params[0], state[0], x, key=None, train=True)[0]
    own = send(c3(4, keys="unitary"), z)[1].mean(0)
    np.testing.assert_allclose(extra["state"][1]["seen"]["mean"], own, atol=1e-5)
    assert extra["out"].shape == (5, 3)


def test_the_shorter_rows_are_the_more_luck_keys_need():
    """Of 16 values the noise correlates: the law holds on average over seeds alone."""

    def spread(width):
        found = []
        for seed in range(12):
            codec, x = c3(4, seed=seed), normal(16, width, seed=seed)
            state = codec.init(x)
            message, _ = codec.encode(x, state, Context())
            found.append(error(codec.decode(message, state)[0], x).mean())
        return np.mean(found), np.std(found)

    short, wide = spread(16), spread(1024)
    assert short[1] > 3 * wide[1]
    np.testing.assert_allclose(wide[0], 4, rtol=0.05)


def test_centering_takes_the_luck_out_of_a_mean():
    """By chance a key amplifies the mean of a ReLU's output, or does not."""
    x = jax.nn.relu(normal(16, 1024))
    found = {
        center: [
            error(send(c3(4, seed=s, center=center), x)[1], x).mean() for s in range(12)
        ]
        for center in (False, True)
    }
    assert np.std(found[False]) > 5 * np.std(found[True])
    assert np.mean(found[True]) < np.mean(found[False])


def test_a_huge_row_floods_its_group_and_no_other():
    x = normal(8, D).at[1].multiply(100.0)
    _, y, _ = send(c3(4), x)
    # The noise of a row is the sum of the squares of all norms of its group.
    squares = np.square(np.asarray(x, np.float64)).sum(1)
    expected = squares[:4].sum() / squares[:4]
    np.testing.assert_allclose(error(y, x)[:4], expected, rtol=0.2)
    np.testing.assert_allclose(error(y, x)[4:], 4, rtol=0.2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x = normal(4, 1024).astype(dtype)
    message, y, _ = send(c3(2), x)
    wide, z, _ = send(c3(2), x.astype(jnp.float32))
    assert message.node.code.dtype == jnp.float32 and y.dtype == dtype
    np.testing.assert_array_equal(message.node.code, wide.node.code)
    np.testing.assert_array_equal(y, z.astype(dtype))


def test_a_tree_of_unlike_leaves_and_one_example():
    x = {"h": normal(1, 4, 3, 2), "pooled": normal(1, 9), "ids": jnp.arange(4)}
    message, y, _ = send(c3(4, keys="unitary"), x)
    assert message["h"].node.code.shape == (1, 24)
    assert message["pooled"].node.code.shape == (1, 9)
    np.testing.assert_array_equal(message["ids"], x["ids"])
    np.testing.assert_allclose(y["h"], x["h"], atol=1e-5)


def test_a_nan_in_one_sample_is_counted_and_spoils_none():
    """In a split the count is a metric, since a smooth codec's state is constant."""
    x = normal(4, 64)
    _, y, tx = send(c3(4), x.at[2, 5].set(jnp.nan))
    assert np.isfinite(y).all() and int(nonfinite(tx)) == 1
    stages = mlp([8, 3])
    split = Split(cut(stages, after="dense_0"), (Link(c3(4), chain()),), loss)
    pixels = normal(4, 5).at[1, 0].set(jnp.nan)
    params, state = split.init(jax.random.key(0), spec_of(pixels))
    links = split.init_links(params, state, spec_of(pixels))
    (value, extra), grads = jax.jit(split.value_and_grad)(
        params, state, links, pixels, jnp.zeros(4, jnp.int32)
    )
    assert int(extra["metrics"]["link_0/nonfinite"]) == 8 and np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads[1]))
