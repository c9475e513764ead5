# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train at a low rank
#
# A network whose matrices have few ranks is small and fast, but to cut them down after
# training costs accuracy. LRPET (arXiv 2204.05566) trains towards it: now and then the
# weights are projected to their rank, and what the projection took of their energy is
# given back to what is left. It is one more link in your optax chain.

# %%
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("splitjax") is None:  # in Colab: once
    source = os.environ.get("SPLITJAX_SOURCE", "splitjax")
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", source])

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

from splitjax.core.factor import materialize
from splitjax.factors.truncated import truncate
from splitjax.optim.lrpet import lrpet
from splitjax.optim.ranks import at_rank

SMALL = bool(os.environ.get("SMALL"))
EPOCHS, SEEDS = (2, 1) if SMALL else (20, 3)
RANKS = (4,) if SMALL else (1, 2, 3, 4, 6, 8)

# %%
digits = load_digits()
images = (digits.images / 16.0).astype(np.float32).reshape(-1, 64)
labels = digits.target.astype(np.int32)
order = np.random.default_rng(0).permutation(len(images))
images, labels = images[order], labels[order]
train_x, train_y, test_x, test_y = (
    images[:1408],
    labels[:1408],
    images[1408:],
    labels[1408:],
)


# %% [markdown]
# ## A model of anyone's
#
# Plain Flax; nothing of it knows of ranks.


# %%
class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for name in ("one", "two"):
            x = nn.relu(nn.Dense(128, name=name)(x))
        return nn.Dense(10, name="head")(x)


net = Net()


def loss(params, x, y):
    logits = net.apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def accuracy(params):
    logits = net.apply({"params": materialize(params)}, test_x)
    return float((logits.argmax(-1) == test_y).mean())


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


# %% [markdown]
# ## One more link in the chain
#
# `at_rank` chooses leaves by the pattern of their path. An epoch has 44 steps here.

# %%
STEPS = 44


def train(tx, seed):
    params = net.init(jax.random.key(seed), train_x[:1])["params"]
    state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x, y, number):
        grads = jax.grad(loss)(params, x, y)
        updates, state = tx.update(grads, state, params, step=number)
        return optax.apply_updates(params, updates), state

    number = 0
    for epoch in range(EPOCHS):
        order = np.random.default_rng([seed, epoch]).permutation(len(train_x))
        for rows in order.reshape(STEPS, 32):
            at = jnp.int32(number)
            params, state = step(params, state, train_x[rows], train_y[rows], at)
            number += 1
    return params


def optimizer(*more):
    return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.05, 0.9), *more)


found = []
for seed in range(SEEDS):
    whole = train(optax.with_extra_args_support(optimizer()), seed)
    for rank in RANKS:
        low = at_rank("(one|two)/kernel", rank)
        cut = truncate(whole, low)
        trained = train(optimizer(lrpet(low, every=STEPS, last=EPOCHS * STEPS)), seed)
        plain = train(
            optimizer(lrpet(low, every=STEPS, last=EPOCHS * STEPS, transfer=False)),
            seed,
        )
        row = {
            "rank": rank,
            "numbers": size(cut) / size(whole),
            "whole": accuracy(whole),
            "cut after training": accuracy(cut),
            "projected, no transfer": accuracy(truncate(plain, low)),
            "LRPET": accuracy(truncate(trained, low)),
        }
        found.append(row)

arms = ("whole", "cut after training", "projected, no transfer", "LRPET")
print(f"{'rank':<5} numbers  " + "  ".join(f"{arm:>22}" for arm in arms))
for rank in RANKS:
    rows = [row for row in found if row["rank"] == rank]
    mean = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    print(
        f"{rank:<5} {mean['numbers']:6.0%}  "
        + "  ".join(f"{mean[arm]:22.3f}" for arm in arms)
    )

# %%
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for arm in arms:
    at = [np.mean([r[arm] for r in found if r["rank"] == rank]) for rank in RANKS]
    axes.plot(RANKS, at, "--" if arm == "whole" else "o-", label=arm)
axes.set(
    xlabel="rank of both 128-wide matrices", ylabel="test accuracy", title="digits"
)
axes.legend()
plt.show()

# %% [markdown]
# A network that was trained to be low-rank loses little where one that is cut down
# afterwards is lost. Most of that is the projection while training goes on; to give the
# energy back adds a little from a rank of 3 on, and hurts at 1 and 2, where one or two
# directions would have to carry that of 64.
