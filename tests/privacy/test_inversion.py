import jax
import numpy as np
import pytest

from splitjax.privacy import decoder_inversion, ridge_inversion, variance_left


def pairs(rows=300, inputs=10, outputs=40, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, inputs)) + 3
    return x, x @ rng.normal(size=(inputs, outputs)) - 7


@pytest.mark.parametrize("rows", [300, 40], ids=["tall", "wide"])
def test_ridge_is_its_normal_equations(rows):
    x, z = pairs(rows, outputs=60)
    z += 0.3 * np.random.default_rng(1).normal(size=z.shape)
    found = ridge_inversion(z, x, strengths=(0.01,))
    known = rows - rows // 5
    zc, xc = z[:known] - z[:known].mean(0), x[:known] - x[:known].mean(0)
    gram = zc.T @ zc
    gram += 0.01 * np.trace(gram) / 60 * np.eye(60)
    np.testing.assert_allclose(
        found.weights, np.linalg.solve(gram, zc.T @ xc), atol=1e-9
    )


def test_ridge_undoes_a_linear_map_and_chooses_its_strength():
    x, z = pairs()
    guess = ridge_inversion(z[:200], x[:200])
    assert variance_left(x[200:], guess(z[200:])) < 1e-8
    assert guess.strength < 1e-4
    noisy = z + 30 * np.random.default_rng(1).normal(size=z.shape)
    assert ridge_inversion(noisy[:200], x[:200]).strength >= 1e-2


def test_from_messages_that_tell_nothing_little_more_than_the_mean_is_made():
    x, _ = pairs()
    z = np.random.default_rng(5).normal(size=(300, 40))
    guess = ridge_inversion(z[:200], x[:200])
    assert 0.9 < variance_left(x[200:], guess(z[200:])) < 1.3
    constant = ridge_inversion(np.ones((200, 4)), x[:200])
    assert 0.99 < variance_left(x[200:], constant(np.ones((100, 4)))) < 1.1


def test_a_decoder_undoes_what_a_line_cannot(key):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 2))
    z = np.cos(2 * x @ rng.normal(size=(2, 12)) + rng.normal(size=12))
    line = ridge_inversion(z[:1000], x[:1000])
    how = dict(key=key, width=64, steps=600, learning_rate=5e-3)
    net = decoder_inversion(z[:1000], x[:1000], **how)
    one, other = (variance_left(x[1000:], guess(z[1000:])) for guess in (line, net))
    assert other < 0.5 * one
    again = decoder_inversion(z[:1000], x[:1000], **how)
    np.testing.assert_array_equal(net(z[:5]), again(z[:5]))


def test_bad_pairs_are_refused(key):
    x, z = pairs(20)
    for attack in (ridge_inversion, lambda z, x: decoder_inversion(z, x, key=key)):
        with pytest.raises(ValueError, match="20 rows and x 19"):
            attack(z, x[1:])
        with pytest.raises(ValueError, match="too few"):
            attack(z[:5], x[:5])
        with pytest.raises(ValueError, match="1 values that are not finite"):
            attack(np.where(np.arange(z.size).reshape(z.shape) == 3, np.inf, z), x)
    with pytest.raises(ValueError, match="no variance"):
        variance_left(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="no strength"):
        ridge_inversion(z, x, strengths=())


def test_jax_arrays_are_taken():
    x, z = pairs(40)
    guess = ridge_inversion(jax.numpy.asarray(z), jax.numpy.asarray(x))
    assert guess(z).dtype == np.float64


def test_messages_that_hardly_vary_give_the_mean():
    """And no warning: their scale is below what can be divided by."""
    chance = np.random.default_rng(0)
    x = chance.standard_normal((40, 3))
    z = 1e-170 * chance.standard_normal((40, 5))
    assert variance_left(x, ridge_inversion(z, x)(z)) > 0.5
