import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.core.straight_through import ste_sign
from splitjax.core.tree import where
from splitjax.models.binary_conv import BinaryConv, binary_cnn
from splitjax.models.binary_dense import BinaryDense, BinaryLayer, binary_mlp
from splitjax.models.xnor import popcount_dot, sign_bits, xnor_conv, xnor_dot
from splitjax.optim import clip_latent


def signs(key, *shape):
    return ste_sign(jax.random.normal(key, shape))


@pytest.mark.parametrize("n", [1, 7, 8, 13, 64])
def test_popcount_is_the_matrix_product(n, key):
    """x . w = n - 2 popcount(x xor w), whatever is left over in the last byte."""
    x = signs(key, 2, 3, n)
    latent = jax.random.normal(jax.random.fold_in(key, 1), (n, 5)).at[0, 0].set(0.0)
    np.testing.assert_array_equal(jax.jit(xnor_dot)(x, latent), x @ ste_sign(latent))


@pytest.mark.parametrize("stride", [1, 2])
def test_popcount_is_the_convolution(stride, key):
    """Zeros around the picture included, which are no signs."""
    layer, x = BinaryConv(4, stride=stride), signs(key, 2, 6, 5, 3)
    made = layer.init(key, x)
    by_bits = jax.jit(lambda *a: xnor_conv(*a, stride=stride))
    got = by_bits(x, made["params"]["latent"])
    np.testing.assert_array_equal(got, layer.apply(made, x))


def test_bits_of_another_width_raise(key):
    with pytest.raises(ValueError, match="9 signs are 2 bytes"):
        popcount_dot(sign_bits(jnp.ones((1, 8))), sign_bits(jnp.ones((1, 8))), 9)


@pytest.mark.parametrize("product", [BinaryDense(6), BinaryConv(6)], ids=["d", "c"])
def test_weights_take_two_values_and_the_latent_moves(product, key):
    x = jax.random.normal(key, (4, 5, 5, 3))
    layer = BinaryLayer(product)
    made = layer.init(key, x, train=False)
    tx = optax.chain(optax.sgd(30.0), optax.masked(clip_latent(), where(".*/latent")))

    def total(params):
        out, _ = layer.apply(
            {**made, "params": params}, x, train=True, mutable="batch_stats"
        )
        return jnp.sum(out * x[..., :1])

    g = jax.grad(total)(made["params"])
    updates, _ = tx.update(g, tx.init(made["params"]), made["params"])
    latent, g = made["params"]["product"]["latent"], g["product"]["latent"]
    new = latent + updates["product"]["latent"]
    assert g.any() and (new != latent).any() and float(jnp.abs(new).max()) <= 1
    assert len(np.unique(np.abs(latent))) > 2
    used = jax.jit(lambda w: product.apply({"params": {"latent": w}}, x))
    np.testing.assert_array_equal(used(latent), used(ste_sign(latent)))


def test_gradients_are_those_of_the_formula(key):
    """dL/dW = x' g where |W| <= 1, and dL/dx = g sign(W)'."""
    x, g = jax.random.normal(key, (4, 3)), jax.random.normal(key, (4, 2))
    latent = jnp.array([[0.5, -1.5], [1.0, 0.0], [-0.2, 2.0]])

    def run(w, x):
        return BinaryDense(2).apply({"params": {"latent": w}}, x)

    of_latent, of_x = jax.vjp(run, latent, x)[1](g)
    inside = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(of_latent, (x.T @ g) * inside, rtol=1e-5)
    np.testing.assert_allclose(of_x, g @ ste_sign(latent).T, rtol=1e-5)


def test_padding_gives_zeros_and_enters_no_statistics(key):
    layer = BinaryLayer(BinaryDense(3))
    x = {"h": jax.random.normal(key, (6, 5)), "mask": jnp.arange(6) < 4}
    made = layer.init(key, x, train=False)
    y, new = layer.apply(made, x, train=True, mutable="batch_stats")
    spoilt = {**x, "h": x["h"].at[4:].set(1e6)}
    z, same = layer.apply(made, spoilt, train=True, mutable="batch_stats")
    np.testing.assert_array_equal(y["h"], z["h"])
    assert not y["h"][4:].any() and set(np.unique(y["h"][:4])) == {-1.0, 1.0}
    assert jax.tree.all(jax.tree.map(jnp.array_equal, new, same))


def test_integer_pixels_raise(key):
    for layer in (BinaryDense(2), BinaryConv(2)):
        with pytest.raises(TypeError, match="uint8.*scale pixels"):
            layer.init(key, jnp.zeros((1, 4, 4, 3), jnp.uint8))


def test_a_norm_of_one_row_raises_in_training_only(key):
    stage = binary_mlp([4])[0]
    x = jax.random.normal(key, (1, 3))
    made = stage.init(key, x)
    assert stage.apply(*made, x, key=None, train=False)[0].shape == (1, 4)
    with pytest.raises(ValueError, match="larger batches"):
        stage.apply(*made, x, key=None, train=True)


def test_stages_halve_a_picture(key):
    x = jax.random.normal(key, (2, 8, 8, 1))
    for stage in binary_cnn([3, 4]):
        x = stage.apply(*stage.init(key, x), x, key=None, train=True)[0]
    assert x.shape == (2, 2, 2, 4) and set(np.unique(x)) == {-1.0, 1.0}
