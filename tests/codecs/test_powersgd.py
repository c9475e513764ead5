import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import (
    Context,
    Sized,
    feedback,
    identity,
    nonfinite,
    on_tree,
    powersgd,
    quantize,
    top_k,
    wire_bytes,
)
from splitjax.core.tree import spec_of


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def send(codec, x, state=None, times=1):
    @jax.jit
    def run(x, state):
        for _ in range(times):
            message, state = codec.encode(x, state, Context())
            y, _ = codec.decode(message, state)
        return y, state

    return run(x, codec.init(spec_of(x)) if state is None else state)


def error(y, x):
    return float(jnp.linalg.norm(y - x) / jnp.linalg.norm(x))


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e25])
def test_it_is_exact_for_the_true_rank(scale):
    x = normal(0, 20, 3) @ normal(1, 3, 30) * scale
    y, _ = send(powersgd(3), x)
    assert error(y / scale, x / scale) < 1e-5
    assert error(send(powersgd(2), x)[0] / scale, x / scale) > 0.05


def test_a_warm_start_comes_to_the_best_of_its_rank():
    x = normal(0, 40, 30) * 0.7 ** jnp.arange(30.0)[None]
    s = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
    best = np.sqrt((s[2:] ** 2).sum() / (s**2).sum())
    once, again = send(powersgd(2), x)[0], send(powersgd(2), x, times=20)[0]
    assert error(once, x) > 1.02 * best
    assert best <= error(again, x) * 1.0001 and error(again, x) < 1.001 * best


def test_layers_are_matrices_and_kernels_can_be_flat():
    x = jnp.stack([normal(i, 12, 1) @ normal(9 + i, 1, 10) for i in range(3)])
    assert error(send(powersgd(1), x)[0], x) < 1e-5
    assert error(send(powersgd(3, flatten=True), x)[0], x) < 1e-5
    spec = jax.ShapeDtypeStruct((3, 3, 64, 128), jnp.float32)
    assert wire_bytes(powersgd(2, flatten=True), spec) == 4 * 2 * (9 * 64 + 128)
    assert wire_bytes(powersgd(2), spec) == 4 * 2 * 9 * (64 + 128)


def test_rows_of_tokens_keep_their_directions():
    """Another number of used rows, and of rows: Q belongs to the last axis."""
    codec, mix = powersgd(2), normal(1, 2, 16)

    def some(used, total):
        rows = normal(used, total, 2) @ mix
        row = jnp.arange(total)[:, None]
        return Sized(jnp.where(row < used, rows, 0.0), jnp.int32(used))

    x = some(9, 20)
    y, state = send(codec, x)
    assert error(y.buffer, x.buffer) < 1e-5 and int(y.used) == 9
    x = some(5, 12)
    y, _ = send(codec, x, state)
    assert error(y.buffer, x.buffer) < 1e-5


def test_zeros_keep_the_start_and_nan_is_counted():
    x = normal(0, 8, 6)
    codec = powersgd(1)
    y, state = send(codec, x * 0, send(codec, x)[1])
    assert not y.any()
    assert error(send(codec, x, state)[0], x) == error(send(codec, x, times=2)[0], x)
    y, state = send(codec, x.at[0, 0].set(jnp.nan).at[1, 1].set(-jnp.inf))
    assert jnp.isfinite(y).all() and int(nonfinite(state)) == 2


def test_what_would_not_get_shorter_crosses_as_it_is():
    x = {"bias": normal(0, 50), "small": normal(1, 4, 4), "none": jnp.ones((0, 9))}
    y, _ = send(powersgd(2), x)
    jax.tree.map(np.testing.assert_array_equal, x, y)
    assert wire_bytes(powersgd(2), spec_of(x)) == 4 * 66


def test_bad_arguments_and_other_columns_are_refused():
    with pytest.raises(ValueError, match="rank=0"):
        powersgd(0)
    codec = powersgd(1)
    with pytest.raises(ValueError, match=r"columns \(6,\) and got the shape \[8, 5\]"):
        codec.encode(jnp.ones((8, 5)), codec.init(jnp.ones((8, 6))), Context())


def train(codec, *, workers=2, steps=150):
    """Workers train one network on parts of a batch; only gradients cross.

    Returns:
      The last loss, and the bytes of one worker's message as a part of its gradient's.
    """
    x, y = (
        normal(0, workers, 32, 12),
        jnp.sin(normal(0, workers, 32, 12) @ normal(1, 12, 4)),
    )
    params = {"in": {"w": normal(2, 12, 24) * 0.3, "b": jnp.zeros(24)}}
    params["out"] = {"w": normal(3, 24, 4) * 0.3, "b": jnp.zeros(4)}

    def loss(p, x, y):
        h = jnp.tanh(x @ p["in"]["w"] + p["in"]["b"][None])
        return jnp.mean((h @ p["out"]["w"] + p["out"]["b"][None] - y) ** 2)

    def step(carry, key):
        params, ends = carry

        def worker(x, y, end, key):
            tx, rx = end
            g = jax.grad(loss)(params, x, y)
            message, tx = codec.encode(g, tx, Context(key))
            g, rx = codec.decode(message, rx)
            return g, (tx, rx)

        keys = jax.random.split(key, workers)
        g, ends = jax.vmap(worker)(x, y, ends, keys)
        params = jax.tree.map(lambda p, g: p - 0.3 * g.mean(0), params, g)
        return (params, ends), None

    state = codec.init(spec_of(params))
    ends = jax.tree.map(lambda a: jnp.stack([a] * workers), (state, state))
    keys = jax.random.split(jax.random.key(7), steps)
    (params, _), _ = jax.jit(lambda: jax.lax.scan(step, (params, ends), keys))()
    part = wire_bytes(codec, spec_of(params)) / sum(
        a.nbytes for a in jax.tree.leaves(params)
    )
    return float(jax.vmap(loss, (None, 0, 0))(params, x, y).mean()), part


@pytest.mark.parametrize(
    "codec, part",
    [
        (on_tree({"in": feedback(powersgd(1)), "out": feedback(quantize(4))}), 0.35),
        pytest.param(
            feedback(quantize(2, rounding="stochastic")), 0.3, marks=pytest.mark.slow
        ),
        pytest.param(feedback(top_k(0.05, axis="all")), 0.08, marks=pytest.mark.slow),
    ],
    ids=lambda a: getattr(a, "name", ""),
)
def test_data_parallel_workers_train_a_whole_tree(codec, part):
    """As well as with whole gradients, or nearly: 0.9 of the way from the start."""
    start, whole = train(identity(), steps=0)[0], train(identity())[0]
    got, sent = train(codec)
    assert sent < part
    assert start - got > 0.9 * (start - whole)
