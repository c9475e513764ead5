import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from splitjax.adapters.linen import from_linen
from splitjax.core.tree import spec_of

X = jnp.arange(12.0).reshape(4, 3)


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dropout(0.5)(x, deterministic=not train)

    @nn.compact
    def twice(self, x):
        return nn.Dense(1)(2 * x)


def test_state_is_all_but_the_parameters(key):
    stage = from_linen(Noisy(), "noisy")
    params, state = stage.init(key, spec_of(X))
    assert list(state) == ["batch_stats"]
    assert set(params["BatchNorm_0"]) == {"scale", "bias"}
    y, same, aux = stage.apply(params, state, X, key=None, train=False)
    assert jnp.allclose(y, X, atol=1e-3) and aux == {}
    assert jax.tree.all(jax.tree.map(jnp.array_equal, same, state))
    _, new, _ = stage.apply(params, state, X, key=key, train=True)
    assert not jnp.array_equal(
        new["batch_stats"]["BatchNorm_0"]["mean"],
        state["batch_stats"]["BatchNorm_0"]["mean"],
    )


def test_the_key_alone_decides(key):
    stage = from_linen(Noisy(), "noisy")
    made = stage.init(key, spec_of(X))

    def run(key):
        return stage.apply(*made, X, key=key, train=True)[0]

    assert jnp.array_equal(run(key), run(key))
    assert not jnp.array_equal(run(key), run(jax.random.key(1)))
    with pytest.raises(Exception, match="dropout"):
        run(None)


@pytest.mark.parametrize(
    "module", [nn.Dropout(0.5), nn.BatchNorm(), nn.Dropout(0.5, deterministic=True)]
)
def test_flags_are_found_by_name(module, key):
    stage = from_linen(module, "part")
    made = stage.init(key, spec_of(X))
    assert jnp.allclose(stage.apply(*made, X, key=None, train=False)[0], X, atol=1e-3)
    trained = stage.apply(*made, X, key=key, train=True)[0]
    fixed = getattr(module, "deterministic", None)
    assert jnp.allclose(trained, X) == bool(fixed)


@pytest.mark.parametrize("method", ["twice", Noisy.twice], ids=["name", "function"])
def test_another_method(method, key):
    stage = from_linen(Noisy(name="mine"), method=method, tags={"t"})
    params, state = stage.init(key, spec_of(X))
    assert (stage.name, stage.tags, state) == ("mine", {"t"}, {})
    y = stage.apply(params, state, X, key=None, train=True)[0]
    assert jnp.allclose(y, 2 * X @ params["Dense_0"]["kernel"], atol=1e-5)


def test_a_name_is_needed():
    with pytest.raises(ValueError, match="Noisy"):
        from_linen(Noisy())
