"""Scikit-learn's digits through a cut: what the tests of two systems train."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from splitjax.codecs import Link
from splitjax.core.cut import Cut
from splitjax.core.split import Split

BATCH, TRAIN, TEST = 64, 22 * 64, 6 * 64


def loss(y, target):
    return optax.losses.softmax_cross_entropy_with_integer_labels(y, target).mean(), {}


def data() -> tuple[tuple, tuple]:
    """Training and test pairs: pixels from -1 to 1, labels."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    x = (digits.data[order] / 8 - 1).astype(np.float32)
    y = digits.target[order].astype(np.int32)
    return (x[:TRAIN], y[:TRAIN]), (x[TRAIN:][:TEST], y[TRAIN:][:TEST])


def begin(made: Cut, link: Link, seed: int = 0) -> tuple:
    """The split, and parameters, state and links of a fresh model."""
    split, spec = (
        Split(made, (link,), loss),
        jax.ShapeDtypeStruct((BATCH, 64), "float32"),
    )
    params, state = split.init(jax.random.key(seed), spec)
    return split, params, state, split.init_links(params, state, spec)


def fit(made: Cut, link: Link, *, epochs=20, rate=1e-3, seed=0, tx=None) -> tuple:
    """Trains a cut model; gives parameters and state by segment."""
    tx, key = tx or optax.adam(rate), jax.random.key(seed)
    split, params, state, links = begin(made, link, seed)
    x, y = (jnp.asarray(a) for a in data()[0])

    @jax.jit
    def train(params, state, links, batches):
        def step(carry, rows):
            params, state, links, opt, tick = carry
            own = jax.random.fold_in(key, tick)
            (value, extra), grads = split.value_and_grad(
                params, state, links, x[rows], y[rows], key=own, tick=tick
            )
            with jax.numpy_dtype_promotion("standard"):
                updates, opt = tx.update(grads, opt, params)
            params = optax.apply_updates(params, updates)
            return (params, extra["state"], extra["links"], opt, tick + 1), value

        carry = params, state, links, tx.init(params), jnp.int32(0)
        return jax.lax.scan(step, carry, batches)[0][:2]

    chance = np.random.default_rng(seed)
    rows = np.concatenate([chance.permutation(TRAIN) for _ in range(epochs)])
    return train(params, state, links, jnp.asarray(rows.reshape(-1, BATCH)))


def accuracy(made: Cut, link: Link, params: tuple, state: tuple, seed=0) -> float:
    """The share of the test half that is recognized, through the link."""
    split, _, _, links = begin(made, link)
    x, y = data()[1]

    @jax.jit
    def hits(params, state, links, x, y):
        def batch(pair):
            (_, extra), _ = split.value_and_grad(
                params, state, links, *pair, key=jax.random.key(seed), train=False
            )
            hit = jnp.argmax(extra["out"], -1) == pair[1]
            return jnp.mean(hit.astype(jnp.float32))

        return jax.lax.map(batch, (x, y)).mean()

    batches = x.reshape(-1, BATCH, 64), y.reshape(-1, BATCH)
    return float(hits(params, state, links, *batches))
