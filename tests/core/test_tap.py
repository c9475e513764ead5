import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.tap import tap, without_taps


def squares(y, g):
    return (g * g).sum(0)


def loss(params, x):
    y = tap(squares, x * params["kernel"][None], params["tap_g"])
    return jnp.sum(jnp.sin(y))


def params(width=3):
    return {"kernel": jnp.arange(1.0, width + 1), "tap_g": jnp.zeros(width)}


def plain(kernel, x):
    return jnp.sum(jnp.sin(x * kernel[None]))


def test_a_tap_changes_neither_value_nor_gradient(key):
    x = jax.random.normal(key, (5, 3))
    value, grad = jax.value_and_grad(loss)(params(), x)
    want, wanted = jax.value_and_grad(plain)(params()["kernel"], x)
    assert value == want
    np.testing.assert_array_equal(grad["kernel"], wanted)


def test_the_leafs_gradient_is_the_statistic(key):
    x = jax.random.normal(key, (5, 3))
    grad = jax.jit(jax.grad(loss))(params(), x)
    want = np.square(np.cos(np.asarray(x) * [1.0, 2, 3])).sum(0)
    np.testing.assert_allclose(grad["tap_g"], want, rtol=1e-6)


def test_the_statistic_reads_the_output_too(key):
    x = jax.random.normal(key, (5, 3))

    def outer(y, g):
        return y.T @ g

    def run(leaf):
        return (2 * tap(outer, x, leaf)).sum()

    grad = jax.grad(run)(jnp.zeros((3, 3)))
    want = np.asarray(x).T @ np.full((5, 3), 2.0)
    np.testing.assert_allclose(grad, want, rtol=1e-6)


def test_the_leafs_value_plays_no_part(key):
    x = jax.random.normal(key, (5, 3))
    other = {**params(), "tap_g": jnp.full(3, 7.0)}
    one, two = (jax.value_and_grad(loss)(p, x) for p in (params(), other))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_tap_under_vmap_is_one_for_each_lane(key):
    x = jax.random.normal(key, (4, 5, 3))
    mapped = jax.vmap(jax.grad(loss), (None, 0))(params(), x)
    assert mapped["tap_g"].shape == (4, 3)
    for lane in range(4):
        want = jax.grad(loss)(params(), x[lane])
        np.testing.assert_allclose(mapped["tap_g"][lane], want["tap_g"], rtol=1e-6)


def test_a_leaf_has_its_own_dtype():
    x = jnp.ones((5, 3), jnp.bfloat16)
    grad = jax.grad(lambda leaf: tap(squares, x, leaf).astype(jnp.float32).sum())
    assert grad(jnp.zeros(3)).dtype == jnp.float32
    assert grad(jnp.zeros(3)).tolist() == [5, 5, 5]


def test_two_visits_of_one_leaf_add_up():
    x = jnp.ones((5, 3))

    def twice(leaf):
        return tap(squares, tap(squares, x, leaf), leaf).sum()

    assert jax.grad(twice)(jnp.zeros(3)).tolist() == [10, 10, 10]


def test_taps_are_left_out_wherever_they_stand():
    tree = {"a": {"kernel": 1, "tap_g": 2}, "tap_b": 3, "b": [{"tap_c": 4}], "tapas": 5}
    assert without_taps(tree) == {
        "a": {"kernel": 1, "tap_g": None},
        "tap_b": None,
        "b": [{"tap_c": None}],
        "tapas": 5,
    }
