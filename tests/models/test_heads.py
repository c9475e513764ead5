import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.stage import join
from splitjax.core.tree import path_name
from splitjax.models import heads

B, T, D = 6, 4, 8
HEADS = {
    "embedding": (heads.embedding(), (B, D), ""),
    "pair_cosine": (heads.pair_cosine(), (B // 2,), ""),
    "pairs": (heads.pairs(3), (B // 2, 3), "classifier"),
    "first": (heads.classification(3), (B, 3), "classifier"),
    "pooler": (heads.classification(3, pool="pooler"), (B, 3), "classifier pooler"),
    "mean": (heads.classification(3, pool="mean"), (B, 3), "classifier"),
    "regression": (heads.regression(), (B,), "classifier"),
}


@pytest.fixture(params=[jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def hidden(request, key):
    """The last row has no tokens."""
    lengths = jnp.array([4, 3, 2, 1, 4, 0])[:, None]
    h = jax.random.normal(key, (B, T, D), request.param)
    return {"h": h, "mask": jnp.arange(T)[None] < lengths}


@pytest.mark.parametrize("name", HEADS)
def test_shapes_parameters_and_finite_gradients(name, hidden, key):
    stages, shape, layers = HEADS[name]
    head = join(stages)
    spec = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), hidden)
    params, state = head.init(key, spec)
    found = jax.tree_util.tree_leaves_with_path(params)
    want = {
        f"{layer}/{leaf}" for layer in layers.split() for leaf in ("kernel", "bias")
    }
    assert {path_name(path).partition("/")[2] for path, _ in found} == want

    def run(params, h):
        x = {**hidden, "h": h}
        y, _, _ = head.apply(params, state, x, key=key, train=True)
        return jnp.square(y).sum(), y

    grad, y = jax.jit(jax.grad(run, (0, 1), has_aux=True))(params, hidden["h"])
    assert y.shape == shape and y.dtype == jnp.float32
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((grad, y)))


def test_embedding_is_the_mean_of_real_tokens(hidden):
    y, _, _ = join(heads.embedding(normalize=False)).apply(
        {"pool": {}, "head": {}},
        {"pool": {}, "head": {}},
        hidden,
        key=None,
        train=False,
    )
    h = np.asarray(hidden["h"], np.float32)
    np.testing.assert_allclose(y[1], h[1, :3].mean(0), atol=1e-6)
    assert not y[5].any()


def test_cosine_joins_row_i_of_both_towers(hidden):
    empty = {"pool": {}, "head": {}}
    run = {"key": None, "train": False}
    y, _, _ = join(heads.pair_cosine()).apply(empty, empty, hidden, **run)
    e, _, _ = join(heads.embedding()).apply(empty, empty, hidden, **run)
    np.testing.assert_allclose(y[1], e[1] @ e[4], atol=1e-6)
    odd = jax.tree.map(lambda a: a[:5], hidden)
    with pytest.raises(ValueError, match="even number of rows.*5"):
        join(heads.pair_cosine()).apply(empty, empty, odd, **run)


def test_an_unknown_pool_is_refused():
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        heads.classification(2, pool="meen")
