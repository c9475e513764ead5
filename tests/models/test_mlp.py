import jax
import jax.numpy as jnp
import pytest

from splitjax.core.stage import join
from splitjax.core.tree import spec_of
from splitjax.models.dense import Dense
from splitjax.models.mlp import mlp, mlp_nnx
from tests.core.test_factor import Scaled


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_linen_and_nnx_are_one_model(norm, masked, key):
    x = jax.random.normal(key, (6, 5))
    if masked:
        x = {"h": x, "mask": jnp.arange(6) < 4}
    linen = join(mlp([8, 8, 3], norm=norm))
    other = join(mlp_nnx(5, [8, 8, 3], key=key, norm=norm))
    params, state = linen.init(key, spec_of(x))
    assert jax.tree.structure((params, state)) == jax.tree.structure(
        other.init(key, spec_of(x))
    )
    for train in (False, True):
        ours, ours_state, _ = linen.apply(params, state, x, key=key, train=train)
        theirs, their_state, _ = other.apply(params, state, x, key=key, train=train)
        assert jnp.allclose(ours, theirs, atol=1e-6)
        assert jax.tree.all(
            jax.tree.map(lambda a, b: jnp.allclose(a, b), ours_state, their_state)
        )


def test_padding_does_not_enter_the_statistics(key):
    model = join(mlp([8, 3], norm=True))
    x = {"h": jax.random.normal(key, (6, 5)), "mask": jnp.arange(6) < 4}
    made = model.init(key, spec_of(x))
    short = {name: leaf[:4] for name, leaf in x.items()}
    y, state, _ = model.apply(*made, x, key=None, train=True)
    z, same, _ = model.apply(*made, short, key=None, train=True)
    assert jnp.allclose(y[:4], z, atol=1e-6)
    assert jax.tree.all(jax.tree.map(jnp.allclose, state, same))


def test_dense_reads_a_factor(key):
    layer, x = Dense(3), jax.random.normal(key, (4, 2))
    params = layer.init(key, x)["params"]
    factor = {**params, "kernel": Scaled(params["kernel"] / 2, jnp.float32(2))}
    want = layer.apply({"params": params}, x)
    assert jnp.allclose(layer.apply({"params": factor}, x), want, atol=1e-6)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 5\)"):
        Dense(5).apply({"params": factor}, x)
    low = Dense(3, dtype=jnp.bfloat16).apply({"params": factor}, x)
    assert low.dtype == jnp.bfloat16


def test_a_head_is_needed():
    with pytest.raises(ValueError, match="the head's"):
        mlp([])
