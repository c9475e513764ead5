import jax
import jax.numpy as jnp
import pytest

from splitjax.core.factor import (
    Factor,
    cast_floats,
    dot,
    factorize,
    is_factor,
    materialize,
    register_factor,
)
from splitjax.core.tree import path_name, where


@register_factor
class Scaled(Factor):
    """A kernel times a number."""

    kernel: jax.Array
    scale: jax.Array

    def materialize(self):
        return materialize(self.kernel) * self.scale


def scaled(leaf, *trees):
    scale = trees[0].sum() if trees else jnp.float32(2)
    return Scaled(leaf / scale, scale)


@pytest.fixture
def params():
    return {
        "a": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)},
        "b": {"kernel": jnp.ones((3, 1))},
    }


def test_factorize_puts_a_factor_where_it_is_told(params):
    new = factorize(scaled, params, where("a/kernel"))
    assert is_factor(new["a"]["kernel"])
    assert new["b"]["kernel"] is params["b"]["kernel"]
    back = materialize(new)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert jnp.allclose(back["a"]["kernel"], params["a"]["kernel"])


def test_where_sees_a_factor_whole_in_factorize_and_inside_elsewhere(params):
    new = factorize(scaled, params, where("a/kernel"))
    twice = factorize(lambda old: Scaled(old, jnp.float32(1)), new, where("./kernel"))
    assert isinstance(twice["a"]["kernel"].kernel, Scaled)
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(new)]
    assert "a/kernel/scale" in names
    assert where(".*/scale")(new)["a"]["kernel"].scale
    shapes = []
    factorize(scaled, new, lambda tree: jax.tree.map(lambda a: a.ndim == 1, tree))
    factorize(
        scaled,
        params,
        lambda tree: jax.tree.map(lambda a: not shapes.append(a.shape), tree),
    )
    assert shapes == [(3,), (2, 3), (3, 1)]


def test_factorize_reads_further_trees(params):
    fisher = jax.tree.map(lambda a: jnp.full(a.shape, 0.5), params)
    new = factorize(scaled, params, where("a/kernel"), fisher)
    assert float(new["a"]["kernel"].scale) == 3.0


def test_a_gradient_reaches_the_parts(params):
    new = factorize(scaled, params, where("a/kernel"))
    grad = jax.grad(lambda p: dot(p["a"]["kernel"], jnp.ones((4, 2))).sum())(new)
    assert isinstance(grad["a"]["kernel"], Scaled)
    assert float(grad["a"]["kernel"].scale) == pytest.approx(4 * 15 / 2)


@pytest.mark.parametrize("shape", [(2,), (5, 2), (7, 5, 2)])
def test_dot_is_the_product_with_the_dense_leaf(shape, params):
    x, kernel = jnp.ones(shape), params["a"]["kernel"]
    want = jnp.broadcast_to(kernel.sum(0), (*shape[:-1], 3))
    assert jnp.allclose(dot(kernel, x), want)
    assert jnp.allclose(dot(scaled(kernel), x), want)


def test_dot_takes_a_batch_of_kernels(key):
    kernel = jax.random.normal(key, (4, 2, 3))
    x = jax.random.normal(key, (4, 5, 6, 2))
    want = jnp.einsum("eabi,eij->eabj", x, kernel)
    assert jnp.allclose(dot(kernel, x), want, atol=1e-6)


def test_errors_name_what_is_wrong(params):
    with pytest.raises(ValueError, match="matches no leaf"):
        factorize(scaled, params, where("c/kernel"))
    with pytest.raises(ValueError, match="a/bias"):
        factorize(scaled, params, lambda tree: jax.tree.map(lambda a: False, tree))
    with pytest.raises(TypeError, match="must return a Factor"):
        factorize(lambda a: a, params, where("a/kernel"))
    with pytest.raises(ValueError, match=r"\(1, 3\).*'a/kernel'.*\(2, 3\)"):
        factorize(lambda a: scaled(a[:1]), params, where("a/kernel"))
    with pytest.raises(ValueError, match="tree 0"):
        factorize(scaled, params, where("a/kernel"), {"a": 1})
    with pytest.raises(TypeError, match="bfloat16"):
        dot(params["a"]["kernel"], jnp.ones((1, 2), jnp.bfloat16))
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        dot(params["a"]["kernel"], jnp.ones((1, 3)))
    with pytest.raises(TypeError, match="int"):
        register_factor(int)


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_an_error_of_a_fit_says_at_which_leaf(kind, params):
    def broken(leaf):
        raise kind("no")

    with pytest.raises(kind, match="no") as error:
        factorize(broken, params, where("a/kernel"))
    assert error.value.__notes__ == ["in factorize, at the leaf 'a/kernel'"]


def test_a_cast_keeps_the_kind(params):
    new = cast_floats(scaled(params["a"]["kernel"]), jnp.bfloat16)
    assert isinstance(new, Scaled) and new.spec.dtype == jnp.bfloat16
