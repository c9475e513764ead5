import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from splitjax.core.gradient import frozen_product, value_and_grad, with_zeros
from splitjax.parallel.mesh import make_cloud_mesh


def product(frozen, x):
    return x @ jnp.tanh(frozen)


W = jax.random.normal(jax.random.key(0), (3, 2))
X = jax.random.normal(jax.random.key(1), (8, 3))


def test_zeros_stand_for_what_takes_no_gradient():
    params = {"codes": jnp.uint8([3, 4]), "w": jnp.ones(2), "flag": jnp.array(True)}
    grads = with_zeros({"codes": None, "w": jnp.ones(2), "flag": None}, params)
    assert jax.tree.map(lambda a: a.dtype, grads) == jax.tree.map(
        lambda a: a.dtype, params
    )
    total = jax.tree.map(jnp.add, grads, grads)
    assert total["codes"].tolist() == [0, 0] and total["w"].tolist() == [2, 2]


def test_value_and_grad_takes_what_jax_s_does():
    params = {"codes": jnp.uint8([3, 4]), "w": jnp.ones(2)}

    def loss(params, x):
        y = params["codes"].astype(jnp.float32) * params["w"] * x
        return y.sum(), {"y": y}

    (value, aux), grads = jax.jit(value_and_grad(loss, has_aux=True))(params, 2.0)
    assert float(value) == 14 and aux["y"].tolist() == [6, 8]
    assert grads["w"].tolist() == [6, 8] and grads["codes"].tolist() == [0, 0]
    with pytest.raises(TypeError, match="uint8"):
        jax.grad(lambda p: loss(p, 2.0)[0])(params)


def test_a_frozen_product_gives_its_input_alone_a_gradient():
    g = jax.random.normal(jax.random.key(2), (8, 2))
    y, pull = jax.vjp(lambda w, x: frozen_product(product, w, x), W, X)
    want, other = jax.vjp(lambda x: product(W, x), X)
    np.testing.assert_array_equal(y, want)
    of_w, of_x = pull(g)
    assert not np.asarray(of_w).any()
    np.testing.assert_allclose(of_x, other(g)[0], rtol=1e-6)
    shapes = {leaf.shape for leaf in jax.tree.leaves(pull)}
    assert X.shape not in shapes  # nor tanh(w), which has the shape of w


def test_on_a_mesh_each_device_has_the_gradient_of_its_own_rows():
    """Over which devices a gradient is summed follows from where its input lies."""
    mesh = make_cloud_mesh("data=8")

    def local(x):
        return jax.grad(lambda x: jnp.square(frozen_product(product, W, x)).sum())(x)

    found = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"))(X)
    want = jax.grad(lambda x: jnp.square(product(W, x)).sum())(X)
    np.testing.assert_allclose(found, want, rtol=1e-5)
