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
# # Experts that share
#
# A mixture of experts has the arithmetic of one block and the numbers of many. MPOE
# (arXiv 2203.01104) writes each expert's kernel as a chain of cores and stores the
# largest, central one once for all. Here: a dense block on a mixture of four tasks,
# then the same block upcycled to eight experts, whole and shared.

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

from splitjax.factors.mpo_plan import mpo_plan
from splitjax.models.moe import ExpertDense
from splitjax.models.router import capacity_of, combine, dispatch, route
from splitjax.models.upcycle import upcycle
from splitjax.optim.mask import mask_updates

SMALL = bool(os.environ.get("SMALL"))
EPOCHS = 1 if SMALL else 30
TASKS, EXPERTS, WIDTH, HIDDEN = 4, 8, 64, 16

# %% [markdown]
# ## Four tasks
#
# In each of them the pixels of the digits are in another order. One network reads all.

# %%
digits = load_digits()
pixels = (digits.images / 16.0).astype(np.float32).reshape(-1, 64)
chance = np.random.default_rng(0)
orders = [chance.permutation(64) for _ in range(TASKS)]
images = np.concatenate([pixels[:, order] for order in orders])
labels = np.tile(digits.target.astype(np.int32), TASKS)
order = chance.permutation(len(images))
images, labels = images[order], labels[order]
count = len(images) * 4 // 5 // 64 * 64
train_x, train_y, test_x, test_y = (
    images[:count],
    labels[:count],
    images[count:],
    labels[count:],
)

# %% [markdown]
# ## A block, dense or of experts
#
# Plain Flax. `route` gives every row to an expert that has a place left, and tells how
# uneven that is; `ExpertDense` takes kernels `(E, I, J)`, dense or factors.


# %%
class Dense(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        y = nn.Dense(WIDTH, name="wo")(nn.relu(nn.Dense(HIDDEN, name="wi")(x)))
        return nn.Dense(10, name="head")(x + y), 0.0


class Experts(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        logits = nn.Dense(EXPERTS, name="router")(x)[None]
        mask = jnp.ones((1, len(x)), bool)
        places = capacity_of(len(x), EXPERTS, 1.5 if train else EXPERTS)
        routing = route(logits, mask, router="top1_st", capacity=places, key=None)
        y = nn.relu(ExpertDense(HIDDEN, name="wi")(dispatch(x[None], routing)))
        y = combine(ExpertDense(WIDTH, name="wo")(y), routing, len(x))[0]
        return nn.Dense(10, name="head")(x + y), routing.balance


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def accuracy(net, params):
    logits, _ = net.apply({"params": params}, test_x)
    return float((logits.argmax(-1) == test_y).mean())


def train(net, params, tx):
    state = tx.init(params)

    def loss(params, x, y):
        logits, balance = net.apply({"params": params}, x, train=True)
        found = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return found + 1e-2 * balance

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x, y):
        updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, params)
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(count)
        for rows in order.reshape(-1, 64):
            params, state = step(params, state, train_x[rows], train_y[rows])
    return params


# %% [markdown]
# ## From one block to eight experts
#
# Every arm begins with the same dense block. An expert begins as a copy of it, so the
# mixture computes what the dense block does, until training tells the copies apart.
# The central core moves for all experts at once; `mask_updates` has it move as often as
# each of them.

# %%
adam = optax.adam(1e-3)
dense, experts = Dense(), Experts()
start = train(dense, dense.init(jax.random.key(0), train_x[:1])["params"], adam)
plans = {"wi": mpo_plan(WIDTH, HIDDEN, 3), "wo": mpo_plan(HIDDEN, WIDTH, 3)}
block = {name: start[name] for name in ("wi", "wo")}


def upcycled(plans):
    made = upcycle(block, EXPERTS, key=jax.random.key(1), plans=plans)
    return {**made, "head": start["head"]}


whole, shared = upcycled(None), upcycled(plans)
before = [accuracy(net, p) for net, p in ((dense, start), (experts, shared))]
print(f"dense {before[0]:.3f}, upcycled to shared experts {before[1]:.3f}: the same")

masked = mask_updates(adam, ".*/central", 1 - 1 / EXPERTS, key=jax.random.key(2))
arms = {
    "dense, trained on": (dense, train(dense, start, adam)),
    "8 experts": (experts, train(experts, whole, adam)),
    "8 experts, shared": (experts, train(experts, shared, adam)),
    "8 experts, shared, masked": (experts, train(experts, shared, masked)),
}
rows = {name: (size(p), accuracy(net, p)) for name, (net, p) in arms.items()}
for name, (numbers, score) in rows.items():
    print(f"{name:<26} {numbers:7,d} numbers  accuracy {score:.3f}")

# %%
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for name, (numbers, score) in rows.items():
    axes.plot(numbers, score, "o", label=name)
axes.set(xlabel="numbers", ylabel="test accuracy", title="four orders of the pixels")
axes.legend()
plt.show()

# %% [markdown]
# Experts that share the central core hold a third of the numbers of whole ones, and add
# about as much to the dense block. The differences here are small: some tenths of a
# percent are a few images of the test set.
