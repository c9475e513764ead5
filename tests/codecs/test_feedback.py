import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import (
    Context,
    cast,
    chain,
    feedback,
    nonfinite,
    quantize,
    ragged,
    top_k,
)
from splitjax.core.tree import spec_of

G = {
    "kernel": jax.random.normal(jax.random.key(0), (6, 4, 9)),
    "bias": jax.random.normal(jax.random.key(1), (6, 5)).astype(jnp.bfloat16),
}


@pytest.mark.parametrize(
    "inner",
    [cast("bf16"), quantize(2), chain(top_k(0.2), quantize(4, power_of_two=True))],
    ids=lambda codec: codec.name,
)
def test_what_arrived_is_what_was_meant_but_for_the_last_error(inner):
    """Compiled: XLA would leave out the cast to bfloat16 and back if it could."""
    codec = feedback(inner)
    first = jax.tree.map(lambda a: a[0], G)

    @jax.jit
    def run():
        def step(state, x):
            tx, rx = state
            message, tx = codec.encode(x, tx, Context())
            y, rx = codec.decode(message, rx)
            return (tx, rx), y

        state = codec.init(first)
        return jax.lax.scan(step, (state, state), G)

    (state, _), y = run()
    for name, memory in state["memory"].items():
        sent, meant = (np.asarray(t[name], np.float64).sum(0) for t in (y, G))
        np.testing.assert_allclose(sent + memory, meant, atol=2e-5)
    assert np.abs(state["memory"]["kernel"]).max() > 1e-4  # there is one to carry


def run_sgd(codec, steps=3000):
    """Two workers pull at place 0 with +-5, which cancel; the others agree."""
    pull = jnp.zeros((2, 100)).at[0, 0].set(5.0).at[1, 0].set(-5.0)
    start = jnp.ones(100)

    def step(carry, _):
        w, states = carry

        def one(pull, state):
            message, state = codec.encode(w + pull, state, Context())
            return codec.decode(message, state)[0], state

        g, states = jax.vmap(one)(pull, states)
        return (w - 0.005 * g.mean(0), states), None

    states = jax.tree.map(lambda a: jnp.stack([a, a]), codec.init(start))
    run = jax.jit(lambda: jax.lax.scan(step, (start, states), length=steps)[0][0])
    return run()


def test_sgd_with_1_percent_stalls_without_and_converges_with_it():
    alone = run_sgd(top_k(0.01))
    np.testing.assert_array_equal(alone[1:], 1.0)
    assert float(jnp.abs(run_sgd(feedback(top_k(0.01)))).max()) < 0.15


def test_what_is_not_finite_never_enters_the_memory():
    codec = feedback(quantize(4))
    x = jnp.array([[1.0, jnp.nan, 2.0, jnp.inf], [3e38, 1.0, 0.3, -2.0]])
    state = codec.init(x)
    for _ in range(3):
        message, state = codec.encode(x, state, Context())
        assert jnp.isfinite(state["memory"]).all()
        assert float(jnp.abs(codec.decode(message, state)[0]).max()) < 10
    assert int(nonfinite(state)) == 9


def test_memory_waits_where_there_is_padding():
    codec = feedback(top_k(1))
    x, mask = jnp.array([[3.0, 2.0], [3.0, 2.0]]), jnp.array([True, False])
    _, state = codec.encode(x, codec.init(x), Context())
    message, state = codec.encode(x, state, Context(mask=mask))
    np.testing.assert_array_equal(state["memory"], [[3.0, 0.0], [0.0, 2.0]])
    np.testing.assert_array_equal(codec.decode(message, state)[0], [[0, 4.0], [0, 0]])


def test_another_shape_is_named():
    codec = feedback(quantize(4))
    state = codec.init({"a": jnp.zeros((2, 3))})
    with pytest.raises(ValueError, match=r"'a': \[2, 3\].*got.*'a': \[3, 2\]"):
        codec.encode({"a": jnp.zeros((3, 2))}, state, Context())


def test_rows_that_change_have_no_error_to_carry():
    x = {"h": jnp.ones((2, 3, 8)), "mask": jnp.ones((2, 3), bool)}
    with pytest.raises(ValueError, match="Use the inner codec alone"):
        chain(ragged(), feedback(quantize(4))).init(spec_of(x))
