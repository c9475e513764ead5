import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from splitjax.codecs import Context, Sized, nonfinite, perturb

KEY = jax.random.key(5)


def encode(codec, x, **ctx):
    message, tx = codec.encode(x, codec.init(x), Context(KEY, **ctx))
    return message, tx


@pytest.mark.parametrize(
    "kind, law", [("laplace", stats.laplace), ("gauss", stats.norm)]
)
def test_the_noise_has_its_law(kind, law):
    """Its scale is that of the sensitivity, 2 * clip."""
    x = jnp.zeros((4, 2500))
    noise = encode(perturb(kind, scale=0.25, clip=3.0), x)[0].node
    fit = stats.kstest(np.asarray(noise).ravel(), law(scale=0.25 * 2 * 3.0).cdf)
    assert fit.pvalue > 0.01


@pytest.mark.parametrize("kind, order", [("laplace", 1), ("gauss", 2)])
def test_rows_are_clipped_to_a_norm(kind, order):
    x = jnp.stack([jnp.full((2, 3), 100.0), jnp.full((2, 3), 0.01)])
    y = encode(perturb(kind, scale=1e-6, clip=2.0), x)[0].node.reshape(2, -1)
    norms = np.linalg.norm(y, order, axis=1)
    np.testing.assert_allclose(norms[0], 2.0, rtol=1e-3)
    np.testing.assert_allclose(y[1], 0.01, atol=1e-3)


@pytest.mark.parametrize("kind", ["laplace", "gauss"])
def test_the_gradient_is_that_of_clipping(kind):
    codec = perturb(kind, scale=1e-3, clip=1.0)

    def total(x):
        return jnp.sum(codec.encode(x, codec.init(x), Context(KEY))[0].node[:, 0])

    g = jax.grad(total)(jnp.array([[0.1, 0.2], [0.0, 0.0], [8.0, 0.0]]))
    np.testing.assert_allclose(g[:2], [[1, 0], [1, 0]], atol=1e-6)
    # Beyond the norm only the direction counts, and it is at its end.
    np.testing.assert_allclose(g[2, 0], 0, atol=1e-6)


def test_what_is_not_finite_is_counted_and_hides_nothing_else():
    x = jnp.array([[jnp.nan, 0.5], [jnp.inf, 0.25]])
    message, tx = encode(perturb("gauss", scale=1e-6, clip=1.0), x)
    np.testing.assert_allclose(message.node, [[0, 0.5], [0, 0.25]], atol=1e-4)
    assert int(nonfinite(tx)) == 2


def test_padding_has_no_norm():
    x, mask = jnp.array([[0.5, jnp.nan, 9.0]]), jnp.array([[True, False, False]])
    message, tx = encode(perturb("gauss", scale=1e-6, clip=1.0), x, mask=mask)
    np.testing.assert_allclose(message.node, [[0.5, 0, 0]], atol=1e-4)
    assert int(nonfinite(tx)) == 0


def test_unused_rows_stay_zero():
    x = Sized(jnp.zeros((5, 4)), jnp.int32(2))
    rows = encode(perturb("laplace", scale=1.0, clip=1.0), x)[0].node
    assert rows.buffer[:2].all() and not rows.buffer[2:].any()


@pytest.mark.parametrize("bad", [{"scale": 0.0}, {"clip": float("inf")}, {"scale": -1}])
def test_bad_arguments_raise(bad):
    with pytest.raises(ValueError, match="above 0"):
        perturb("gauss", **{"scale": 1.0, "clip": 1.0, **bad})
    with pytest.raises(ValueError, match="gauss"):
        perturb("gaus", scale=1.0, clip=1.0)
    with pytest.raises(ValueError, match="needs a key"):
        codec = perturb("gauss", scale=1.0, clip=1.0)
        codec.encode(jnp.ones((1, 2)), codec.init(()), Context())


def test_it_says_its_mechanism():
    laplace = perturb("laplace", scale=0.5, clip=1.0)
    assert laplace.mechanism == ("laplace", 2.0, "row")
    assert perturb("gauss", scale=0.5, clip=1.0).mechanism == ("gauss", 0.5, "row")
