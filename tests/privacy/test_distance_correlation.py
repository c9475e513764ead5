import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.privacy import distance_correlation

dcor = jax.jit(distance_correlation)
slopes = jax.jit(jax.value_and_grad(distance_correlation, argnums=1))


def by_hand(x, z):
    """The definition, in float64 and with loops that nobody can mistake."""

    def centered(rows):
        d = np.array([[np.linalg.norm(a - b) for b in rows] for a in rows])
        return d - d.mean(0)[None] - d.mean(1)[:, None] + d.mean()

    a, b = centered(x), centered(z)
    return np.sqrt((a * b).mean() / np.sqrt((a * a).mean() * (b * b).mean()))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_it_is_the_definition():
    x, z = normal(0, 12, 4), normal(1, 12, 4)
    z[:, :2] += x[:, :2]
    np.testing.assert_allclose(dcor(x, z), by_hand(x, z), rtol=1e-5)


def test_a_motion_and_a_scaling_have_all():
    x = normal(0, 12, 4)
    turn, _ = np.linalg.qr(normal(1, 4, 4))
    moved = 3 * x @ turn.astype(np.float32) + 7
    assert abs(float(dcor(x, moved)) - 1) < 1e-5
    # Another affine map is no motion.
    assert float(dcor(x, x * np.float32([9, 1, 1, 0.1]))) < 0.99


def test_independent_rows_come_near_zero_as_the_root_of_their_number():
    means = []
    for rows in (50, 200, 800):
        pairs = [(normal(s, rows, 1), normal(99 - s, rows, 1)) for s in range(8)]
        found = [dcor(*pair) for pair in pairs]
        assert all(0 <= float(value) <= 1 for value in found)
        means.append(np.mean(found))
    # Each has 4 times the rows of the one before, and half the value.
    for before, after in zip(means, means[1:], strict=False):
        assert 0.35 < after / before < 0.65
    assert means[-1] < 0.07


def test_masked_rows_enter_nowhere():
    x, z = normal(0, 12, 4), normal(1, 12, 4)
    mask = np.arange(12) < 9
    x[9:], z[9:] = np.nan, np.inf
    whole = by_hand(x[:9], z[:9])
    np.testing.assert_allclose(dcor(x, z, mask=mask), whole, rtol=1e-5)
    assert float(dcor(x, z, mask=mask & False)) == 0


@pytest.mark.parametrize("kind", ["coincide", "constant", "one column", "all equal"])
def test_gradients_are_finite_where_distances_are_zero(kind):
    x, z = normal(0, 8, 4), normal(1, 8, 4)
    if kind == "coincide":
        x[3], z[3] = x[5], z[5]
    if kind == "constant":
        z[:] = 0.3
    if kind == "one column":
        z[:, 1] = 5.0
    if kind == "all equal":
        x[:] = z[:] = 1e4
    value, grad = slopes(x, z)
    assert np.isfinite(value) and np.isfinite(grad).all()
    assert (float(value) == 0) == (kind in ("constant", "all equal"))


def test_the_gradient_is_that_of_the_definition():
    x, z = normal(0, 8, 4), normal(1, 8, 4)
    _, grad = slopes(x, z)
    for place in ((0, 0), (3, 1)):
        step = np.zeros((8, 4))
        step[place] = 1e-5
        slope = (by_hand(x, z + step) - by_hand(x, z - step)) / 2e-5
        np.testing.assert_allclose(grad[place], slope, rtol=2e-3, atol=1e-5)


def test_integers_bfloat16_and_images_are_rows():
    x = np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1) ** 2
    z = jnp.asarray(x, jnp.bfloat16).reshape(6, 4)
    assert abs(float(dcor(x, z)) - 1) < 1e-4


def test_one_row_and_unlike_rows_are_refused():
    with pytest.raises(ValueError, match="1 row.*pairs.*2 or more"):
        distance_correlation(jnp.ones((1, 3)), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="5 rows and z 4"):
        distance_correlation(jnp.ones((5, 3)), jnp.ones((4, 3)))
