"""COMET: the bound, the noise it makes of gradients, bytes, memory, and training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.codecs import (
    Codec,
    Context,
    bounded,
    cast,
    chain,
    compress_residuals,
    fixed_width,
    lossless,
    max_pool,
    relu,
    residual_bytes,
)
from splitjax.core.tap import BOUND, Noise, bound_of, tap_bound
from splitjax.core.tree import spec_of
from splitjax.optim import adapt_bounds
from splitjax.runtime import frame

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def conv(params, x, padding="SAME"):
    numbers = ("NHWC", "HWIO", "NHWC")
    kernel = params["kernel"]
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=numbers
    )


def valid_conv(params, x):
    return conv(params, x, "VALID")


def dense(params, x):
    return x @ params["kernel"]


LAYERS = {
    "dense": (dense, (400, 24), (24, 20)),
    "conv": (valid_conv, (8, 14, 14, 6), (3, 3, 6, 12)),
}


def uniform_noise(eb: float) -> Codec:
    """What the formula assumes: independent errors in [-eb, eb], none at zeros."""

    def encode(x, state, ctx):
        error = jax.random.uniform(KEY, x.shape, minval=-eb, maxval=eb)
        return jnp.where(x == 0, 0.0, x + error), state

    return Codec(lambda spec: (), encode, lambda m, s: (m, s), name="noise")


@functools.cache
def gradients(name, codec):
    """Of the kernel and of the input, for a loss whose gradient is noise."""
    layer, x_shape, shape = LAYERS[name]
    x = jnp.maximum(jax.random.normal(jax.random.key(1), x_shape), 0)
    kernel = {"kernel": jax.random.normal(jax.random.key(2), shape)}
    y = jax.eval_shape(layer, kernel, x)
    g = jax.random.normal(jax.random.key(3), y.shape)
    run = layer if codec is None else compress_residuals(layer, codec)
    (dw, dx) = jax.jit(lambda p, x, g: jax.vjp(run, p, x)[1](g))(kernel, x, g)
    share = np.mean(np.asarray(x) != 0)
    unit = np.sqrt(share * np.sum(np.square(g)) / g.shape[-1] / 3)
    return dw["kernel"], dx, unit


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_noise_is_that_of_the_formula(name):
    eb = 0.1
    exact, dx, unit = gradients(name, None)
    noisy, same, _ = gradients(name, uniform_noise(eb))
    np.testing.assert_array_equal(dx, same)
    assert np.std(noisy - exact) == pytest.approx(eb * unit, rel=0.1)
    codec = bounded(eb) if name == "dense" else fixed_width(eb, 6)
    rounded, same, _ = gradients(name, codec)
    np.testing.assert_array_equal(dx, same)
    assert 0.5 * eb * unit < np.std(rounded - exact) <= 1.05 * eb * unit


@functools.cache
def encoder(codec):
    return jax.jit(lambda x: codec.encode(x, codec.init(spec_of(x)), Context())[0])


def sent_bytes(codec, x):
    """What crosses, by the frame."""
    message = jax.device_get(encoder(codec)(jnp.asarray(x, jnp.float32)))
    return frame.payload_bytes(message)


def test_bytes():
    u, v = np.meshgrid(np.linspace(0, 6, 256), np.linspace(0, 4, 256))
    smooth = np.sin(u) * np.cos(v) + 0.1 * u
    raw = 4 * smooth.size
    options = dict(relative=True, predictor="lorenzo2d")
    assert sent_bytes(bounded(1e-3, **options), smooth) <= raw / 8
    coded = chain(bounded(1e-3, **options, block=None), lossless())
    assert sent_bytes(coded, smooth) <= raw / 16
    # White noise: the entropy of its codes is log2(range / 2 eb).
    noise, eb = RNG.uniform(-2, 2, smooth.shape), 0.01
    coder = chain(bounded(eb, block=None), lossless())
    entropy = np.log2(4 / (2 * eb))
    block = bounded(eb)
    for codec in (block, coder):
        bits = 8 * sent_bytes(codec, noise) / noise.size
        assert entropy < bits < 1.1 * entropy + 0.25 * (codec.parts == ())
    normal = RNG.normal(size=smooth.shape)
    codes = np.round(normal / 0.02)
    share = np.unique(codes, return_counts=True)[1] / codes.size
    entropy = -np.sum(share * np.log2(share))
    assert 8 * sent_bytes(coder, normal) / noise.size == pytest.approx(entropy, rel=0.1)
    assert sent_bytes(block, 0 * smooth) <= raw / 100
    worst = RNG.integers(0, 2**32, smooth.shape).astype(np.uint32).view(np.float32)
    for codec in (block, coder):
        assert sent_bytes(codec, worst) <= 1.05 * raw


def test_relu_activations_take_an_eighth():
    """The sheet's goal, at the bound that its controller finds on digits."""
    x = np.maximum(RNG.normal(size=(16, 16, 16, 32)) - 0.5, 0)
    coder = chain(bounded(0.1, block=None), lossless())
    assert sent_bytes(coder, x) <= 4 * x.size / 8


def deep(layer, act):
    def loss(params, x):
        for p in params:
            x = act(layer(p, x))
        return jnp.sum(x)

    return loss


def test_memory_falls():
    """What 8 convolutions keep, and what the compiled gradient takes beside its I/O."""
    x = jnp.ones((8, 32, 32, 16))
    params = [{"kernel": jnp.ones((3, 3, 16, 16))} for _ in range(8)]

    def measured(layer, act):
        loss = deep(layer, act)
        made = jax.jit(jax.grad(loss)).lower(params, x).compile()
        return made.memory_analysis().temp_size_in_bytes, residual_bytes(
            loss, params, x
        )

    temp, kept = measured(conv, jax.nn.relu)
    small = compress_residuals(conv, fixed_width(0.1, 4, outliers=1 / 128))
    small_temp, small_kept = measured(small, relu)
    assert kept > 8 * x.nbytes > 5 * small_kept
    assert small_temp < temp / 2


def controller(params, x, tx, *, scale=1.0, steps=1):
    layer = compress_residuals(dense, lambda eb: cast("bf16"))
    state, x = tx.init(params), jnp.asarray(x)

    @jax.jit
    def update(params, state, step):
        grads = jax.grad(lambda p: scale * jnp.sum(jnp.sin(layer(p, x))))(params)
        updates, state = tx.update(grads, state, params, step=step)
        return optax.apply_updates(params, updates), state, Noise(*grads[BOUND])

    for step in range(steps):
        params, state, noise = update(params, state, step)
    return float(bound_of(params[BOUND])), noise


def test_the_controller_keeps_its_laws():
    """For one momentum: doubling N divides by sqrt 2, doubling the loss by 2."""
    params = {"kernel": jnp.ones((6, 4)), BOUND: tap_bound(0.1)}
    x = RNG.normal(size=(32, 6)).astype(np.float32)

    def fixed_momentum():
        def init(params):
            return optax.TraceState(jax.tree.map(jnp.ones_like, params))

        def update(updates, state, params=None):
            return jax.tree.map(jnp.zeros_like, updates), state

        return optax.GradientTransformation(init, update)

    tx = adapt_bounds(fixed_momentum(), floor=1e-9)
    once, _ = controller(params, x, tx)
    twice, _ = controller(params, np.concatenate([x, x]), tx)
    louder, _ = controller(params, x, tx, scale=2.0)
    assert twice == pytest.approx(once / 2**0.5, rel=1e-4)
    assert louder == pytest.approx(once / 2, rel=1e-4)
    silent = adapt_bounds(optax.sgd(0.0, momentum=0.9), floor=2e-4)
    floor, _ = controller(params, x, silent, scale=0.0)
    assert floor == pytest.approx(0.1)  # no gradient at all: nothing is known
    still = adapt_bounds(optax.chain(optax.scale(0.0), optax.trace(0.9)), floor=2e-4)
    floor, noise = controller(params, x, still)
    assert floor == pytest.approx(2e-4, rel=1e-4) and np.isfinite(floor)
    assert noise.squares > 0


def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return jnp.asarray(x, jnp.float32).reshape(-1, 8, 8, 1) / 16, jnp.asarray(y)


def train(layer_of, seed, *, factor=1.0, steps=300, batch=64):
    """Mean loss of the last 50 steps, and accuracy on what was not learned from."""
    x, y = digits()
    key = jax.random.key(seed)
    shapes = {"conv_0": (3, 3, 1, 16), "conv_1": (3, 3, 16, 16), "head": (64, 10)}
    params = {
        name: {
            "kernel": jax.random.normal(jax.random.fold_in(key, i), shape)
            * (2 / np.prod(shape[:-1])) ** 0.5,
            BOUND: tap_bound(1e-3),
        }
        for i, (name, shape) in enumerate(shapes.items())
    }

    def forward(params, x):
        convolve, multiply = layer_of(conv), layer_of(dense)
        for name in ("conv_0", "conv_1"):
            x = max_pool(relu(convolve(params[name], x)))
        return multiply(params["head"], x.reshape(x.shape[0], -1))

    tx = adapt_bounds(optax.sgd(0.05, momentum=0.9), every=10, floor=1e-5)

    @jax.jit
    def update(params, state, x, y, step):
        def loss(params):
            if factor != 1:
                off = jnp.zeros(len(Noise._fields)).at[0].set(np.log2(factor))
                params = {
                    n: {**p, BOUND: p[BOUND] + jax.lax.stop_gradient(off)}
                    for n, p in params.items()
                }
            out = forward(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, step=step)
        return optax.apply_updates(params, updates), state, value

    state, losses = tx.init(params), []
    rng = np.random.default_rng(seed)
    for step in range(steps):
        rows = rng.integers(0, 1400, batch)
        params, state, value = update(params, state, x[rows], y[rows], step)
        losses.append(value)
    right = jnp.argmax(jax.jit(forward)(params, x[1400:]), -1) == y[1400:]
    bound = [float(bound_of(p[BOUND])) for p in params.values()]
    return float(np.mean(losses[-50:])), float(right.mean()), bound


@pytest.mark.slow
def test_a_network_learns_digits_as_well_and_worse_when_bounds_are_off():
    def exact(layer):
        return compress_residuals(layer, lambda eb: chain())

    def lossy(layer):
        return compress_residuals(layer, bounded)

    plain = [train(exact, seed) for seed in range(4)]
    small = [train(lossy, seed) for seed in range(4)]
    off = [train(lossy, seed, factor=100.0) for seed in range(2)]
    loss = np.array([run[0] for run in plain])
    spread = loss.max() - loss.min()
    mine = np.array([run[0] for run in small])
    assert np.abs(mine - loss).max() < spread
    assert min(run[0] for run in off) > 2 * loss.max()
