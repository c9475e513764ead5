import jax
import jax.numpy as jnp
import pytest

from splitjax.adapters.nnx import flax_nnx, from_nnx, nnx_update

nnx = flax_nnx()
X = jnp.arange(12.0).reshape(4, 3)


class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.one = nnx.Dropout(0.5, rngs=rngs)
        self.two = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.norm(x)
        return {"one": self.one(x), "two": self.two(x)}


def test_train_and_eval(key):
    module = Model()
    stage = from_nnx(module, "model", tags={"t"})
    params, state = stage.init(key, None)
    assert set(params["norm"]) == {"scale", "bias"} and stage.tags == {"t"}
    assert set(state) == {"batch_stats"}
    y, same, _ = stage.apply(params, state, X, key=None, train=False)
    assert jnp.allclose(y["one"], X, atol=1e-3)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, same, state))
    _, new, _ = stage.apply(params, state, X, key=key, train=True)
    assert not jnp.array_equal(
        new["batch_stats"]["norm"]["mean"], state["batch_stats"]["norm"]["mean"]
    )
    assert jnp.array_equal(module.norm.mean[...], jnp.zeros(3))


def test_each_stream_draws_its_own_numbers_from_the_key(key):
    stage = from_nnx(Model(), "model")
    made = stage.init(key, None)
    run = jax.jit(lambda key: stage.apply(*made, X + 1, key=key, train=True)[0])
    y = run(key)
    assert not jnp.array_equal(y["one"], y["two"])
    assert jnp.array_equal(y["one"], run(key)["one"])
    assert not jnp.array_equal(y["one"], run(jax.random.key(1))["one"])


def test_plain_transforms_apply(key):
    stage = from_nnx(Model(), "model")
    params, state = stage.init(key, None)

    def loss(params, x):
        y, new, _ = stage.apply(params, state, x, key=key, train=True)
        return y["one"].sum(), new

    grad, new = jax.vmap(jax.grad(loss, has_aux=True), (None, 0))(
        params, jnp.stack([X, X + 1])
    )
    assert grad["norm"]["bias"].shape == (2, 3)
    assert new["batch_stats"]["norm"]["mean"].shape == (2, 3)


def test_the_stage_does_not_share_memory_with_the_module(key):
    module = Model()
    stage = from_nnx(module, "model")
    params, state = jax.tree.map(lambda a: a + 1, stage.init(key, None))
    nnx_update(module, params, state)
    assert jnp.array_equal(module.norm.scale[...], jnp.full(3, 2.0))
    assert jnp.array_equal(module.norm.mean[...], jnp.ones(3))
    assert jnp.array_equal(stage.init(key, None)[0]["norm"]["scale"], jnp.ones(3))


def test_only_nnx_modules():
    with pytest.raises(TypeError, match="int"):
        from_nnx(3, "three")
