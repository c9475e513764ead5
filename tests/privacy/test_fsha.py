import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.adapters.linen import from_linen
from splitjax.core.stage import Stage
from splitjax.models.dense import Dense
from splitjax.models.mlp import mlp
from splitjax.privacy import fsha

PIXELS, WIDTH = 6, 4


def dense(width, name):
    return from_linen(Dense(width), name)


def attack(**options):
    nets = dense(WIDTH, "pilot"), dense(PIXELS, "decoder"), dense(1, "critic")
    return fsha(*nets, **options)


def batch(seed, width):
    return jax.random.normal(jax.random.key(seed), (8, width))


@pytest.fixture(scope="module")
def stepped():
    """A function from options to (state before, g, state after, guess)."""

    def run(**options):
        hijacker = attack(**options)
        key, z, x = jax.random.key(0), batch(1, WIDTH), batch(2, PIXELS)
        before = jax.jit(hijacker.init)(key, z, x)
        return before, *jax.jit(hijacker.step)(before, z, x, key)

    return run


def test_the_gradient_is_the_critics_and_all_three_learn(stepped):
    before, g, after, guess = stepped(gain=3.0, learning_rate=1e-2)
    # Of a linear critic the gradient of the mean over 8 rows is its kernel over 8.
    kernel = before["params"]["critic"]["kernel"]
    np.testing.assert_allclose(g, np.tile(3 * kernel.T / 8, (8, 1)), rtol=1e-5)
    decoder = before["params"]["decoder"]
    expected = batch(1, WIDTH) @ decoder["kernel"] + decoder["bias"][None]
    np.testing.assert_allclose(guess, expected, rtol=1e-5)
    for name in ("pilot", "decoder", "critic"):
        old, new = (tree["params"][name]["kernel"] for tree in (before, after))
        assert float(jnp.abs(old - new).max()) > 0


def test_the_critic_and_its_penalty_are_the_papers(stepped):
    """One Adam step has the sign of the loss's gradient, taken here by hand."""
    before, _, after, _ = stepped(critic_learning_rate=1e-3)
    params = before["params"]
    code = batch(2, PIXELS) @ params["pilot"]["kernel"]
    kernel = params["critic"]["kernel"]

    def loss(kernel):
        slope = jnp.sqrt(jnp.sum(kernel**2) + 1e-12)
        judged = (code @ kernel).mean() - (batch(1, WIDTH) @ kernel).mean()
        return judged + 500 * (slope - 1) ** 2

    moved = after["params"]["critic"]["kernel"] - kernel
    np.testing.assert_allclose(
        moved, -1e-3 * np.sign(jax.grad(loss)(kernel)), rtol=1e-3
    )


def test_an_adaptive_attacker_decodes_what_it_imitates(stepped):
    def nothing(key, code):
        del key
        return 0 * code

    _, _, after, _ = stepped(adaptive=nothing, learning_rate=1e-2)
    before, _, binary, _ = stepped(adaptive="binary", learning_rate=1e-2)
    start = before["params"]["pilot"]["kernel"]
    # Of a constant code the pilot learns nothing, through signs it does.
    np.testing.assert_array_equal(after["params"]["pilot"]["kernel"], start)
    assert not np.array_equal(binary["params"]["pilot"]["kernel"], start)


def test_bad_networks_and_words_are_refused(key):
    with pytest.raises(ValueError, match="'binary', or a function"):
        attack(adaptive="ternary")
    z, x = batch(1, WIDTH + 1), batch(2, PIXELS)
    with pytest.raises(ValueError, match=r"code is \(4,\) and a message \(5,\)"):
        attack().init(key, z, x)
    normed: Stage = mlp([WIDTH, 2], norm=True)[0]
    hijacker = fsha(normed, dense(PIXELS, "decoder"), dense(1, "critic"))
    with pytest.raises(ValueError, match="pilot has state"):
        hijacker.init(key, batch(1, WIDTH), x)
