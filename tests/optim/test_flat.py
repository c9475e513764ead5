"""One vector for each dtype: the same steps, and no new collective."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from splitjax.kernels import adam
from splitjax.optim import flat_by_dtype

COLLECTIVE = r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def _params():
    k = jax.random.split(jax.random.key(0), 4)
    return {
        "a": jax.random.normal(k[0], (3, 5)),
        "b": {"c": jax.random.normal(k[1], (7,)), "d": jax.random.normal(k[2], ())},
        "e": jax.random.normal(k[3], (4, 2)).astype(jnp.bfloat16),
    }


def _wave(params, number):
    return jax.tree.map(
        lambda p: jnp.sin(2 * p.astype(jnp.float32) + number).astype(p.dtype), params
    )


def _twenty(tx):
    params, step = _params(), jax.jit(tx.update)
    state = tx.init(params)
    for number in range(20):
        updates, state = step(_wave(params, number), state, params)
        kinds = jax.tree.map(lambda u: (u.dtype, u.shape), updates)
        assert kinds == jax.tree.map(lambda p: (p.dtype, p.shape), params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("make", [optax.adamw, adam], ids=["optax", "ours"])
def test_twenty_steps_are_those_of_single_leaves(make):
    """In float32 to 1e-6; a bfloat16 leaf to some of its roundings."""
    tx = make(1e-2, weight_decay=0.1)
    mixing = "standard" if make is optax.adamw else "strict"
    with jax.numpy_dtype_promotion(mixing):  # optax's Adam mixes dtypes
        runs = _twenty(flat_by_dtype(tx)), _twenty(tx)
    for a, b in zip(*map(jax.tree.leaves, runs), strict=True):
        bound = 1e-6 if a.dtype == jnp.float32 else 2e-2
        a, b = (np.asarray(leaf, np.float32) for leaf in (a, b))
        np.testing.assert_allclose(a, b, rtol=bound, atol=bound)


def test_one_leaf_for_each_dtype():
    tx = flat_by_dtype(optax.adam(0.1))
    [state, *_] = tx.init(_params()).inner
    sizes = {name: leaf.shape for name, leaf in state.mu["flat"].items()}
    assert sizes == {"float32": (23,), "bfloat16": (8,)} and not state.mu["apart"]


def _counts(compiled):
    return sorted(re.findall(COLLECTIVE, compiled.as_text()))


def test_sharded_leaves_stay_as_they_are():
    """No collective: with all leaves joined there are some, so the test can fail."""
    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(AxisType.Auto,))

    def put(spec, *shape):
        return jax.device_put(jnp.ones(shape), NamedSharding(mesh, spec))

    params = {"wi": put(P(None, "tensor"), 8, 16), "wo": put(P("tensor"), 16, 8)}
    params |= {"norm": put(P(), 8), "bias": put(P(), 8)}
    grads = jax.tree.map(lambda p: 2 * p, params)
    tx = flat_by_dtype(adam(0.1))
    state = tx.init(params)
    assert state.apart == ("wi", "wo")
    assert state.inner.mu["flat"]["float32"].shape == (16,)
    compiled = jax.jit(tx.update).lower(grads, state, params).compile()
    assert _counts(compiled) == []
    updates, _ = compiled(grads, state, params)
    assert updates["wi"].sharding.is_equivalent_to(params["wi"].sharding, 2)
    joined = flat_by_dtype(adam(0.1), apart=lambda p: dict.fromkeys(p, False))
    state = joined.init(params)
    assert _counts(jax.jit(joined.update).lower(grads, state, params).compile())


def test_chosen_by_name_and_extra_arguments():
    def init(params):
        return ()

    def update(updates, state, params=None, *, factor, **extra):
        return jax.tree.map(lambda u: factor * u, updates), state

    inner = optax.GradientTransformationExtraArgs(init, update)
    tx = flat_by_dtype(inner, apart="b/.*")
    state = jax.jit(tx.init)(_params())
    assert state.apart == ("b/c", "b/d")
    updates, _ = tx.update(_params(), state, factor=2.0)
    np.testing.assert_array_equal(updates["b"]["c"], 2 * _params()["b"]["c"])
    np.testing.assert_array_equal(updates["a"], 2 * _params()["a"])


def test_bad_inputs():
    tx = flat_by_dtype(optax.adam(0.1))
    for traced in (jax.jit(tx.init), lambda p: jax.eval_shape(tx.init, p)):
        with pytest.raises(ValueError, match="cannot see shardings under jit or eval"):
            traced(_params())
    with pytest.raises(ValueError, match="matches no leaf"):
        flat_by_dtype(optax.sgd(0.1), apart="nothing").init(_params())


def test_a_tree_of_other_leaves():
    """Of as many numbers: joined, they would meet the moments of others."""
    tx = flat_by_dtype(optax.adam(0.1))
    params = {"a": jnp.ones(3), "b": jnp.ones(5)}
    state = tx.init(params)
    other = {"a": jnp.ones(5), "c": jnp.ones(3)}
    text = r"'a' was float32\[3\] on init and is float32\[5\] among the "
    with pytest.raises(ValueError, match=f"{text}updates"):
        tx.update(other, state)
    with pytest.raises(ValueError, match=f"{text}params"):
        tx.update(params, state, other)
    with pytest.raises(ValueError, match="'b' was .* is no leaf among the updates"):
        tx.update({"a": jnp.ones(3)}, state)
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    with pytest.raises(ValueError, match="is float32.*in their parameters' dtype"):
        tx.update(params, tx.init(low), low)
    state = flat_by_dtype(optax.adam(0.1), apart="a").init(params)
    with pytest.raises(ValueError, match="'a' was .* is no leaf among the updates"):
        tx.update({"b": jnp.ones(5)}, state)
