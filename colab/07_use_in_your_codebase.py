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
# # Use pieces in a code base of yours
#
# Nothing here needs a split model. An optimizer transform is a link of an optax chain,
# a factor is a node in a tree of parameters, a codec is a pair of pure functions. The
# lines that splitjax adds are marked `# <-`; all else is an ordinary script.

# %%
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("splitjax") is None:  # in Colab: once
    source = os.environ.get("SPLITJAX_SOURCE", "splitjax")
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", source])

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from flax import nnx
from flax.training import train_state

STEPS = 20 if os.environ.get("SMALL") else 300
x = jax.random.normal(jax.random.key(0), (256, 8))
y = jnp.sin(x.sum(axis=1, keepdims=True))
curves = {}


def rank_of(kernel):
    values = np.linalg.svd(np.asarray(kernel), compute_uv=False)
    return int((values > 1e-4 * values[0]).sum())


# %% [markdown]
# ## Linen: training at a low rank
#
# `lrpet` projects the leaves whose path matches to a rank, every so many steps, and
# gives back the energy that was cut off. It stands last in the chain.

# %%
from splitjax.optim import at_rank, lrpet  # <-


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(1)(x)


model = Mlp()
params = model.init(jax.random.key(1), x)["params"]
tx = optax.chain(optax.adam(1e-2), lrpet(at_rank("Dense_0/kernel", 3), every=20))  # <-
state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=tx)


@jax.jit
def train_step(state, x, y):
    def loss_fn(params):
        return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


losses = []
for _ in range(STEPS):
    state, loss = train_step(state, x, y)
    losses.append(float(loss))
curves["Linen, lrpet at rank 3"] = losses
print("rank of the kernel:", rank_of(state.params["Dense_0"]["kernel"]))

# %% [markdown]
# ## NNX: a factor in the place of a kernel
#
# `factorize` puts a product of two small matrices where the kernel stood; `materialize`
# in the loss hands the model a dense kernel, and gradients reach the two matrices.
# (`nnx.Optimizer` opens what a `Param` holds, so split and merge the module yourself.)

# %%
from splitjax.factors import factorize, low_rank, materialize, where  # <-


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(8, 64, rngs=rngs)
        self.out = nnx.Linear(64, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


graphdef, params = nnx.split(Net(nnx.Rngs(1)), nnx.Param)
params = factorize(low_rank(3), params, where("hidden/kernel"))  # <-
tx = optax.adam(1e-2)
opt_state = tx.init(params)


@jax.jit
def nnx_step(params, opt_state, x, y):
    def loss_fn(params):
        model = nnx.merge(graphdef, materialize(params))  # <-
        return jnp.mean((model(x) - y) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


losses = []
for _ in range(STEPS):
    params, opt_state, loss = nnx_step(params, opt_state, x, y)
    losses.append(float(loss))
curves["NNX, a factor of rank 3"] = losses
print(
    "numbers:", sum(leaf.size for leaf in jax.tree.leaves(params)), "of", 8 * 64 + 129
)

# %% [markdown]
# ## optax alone: a mask on updates
#
# Updates of some leaves are left out with a probability, here .9. It is the *update*,
# not the gradient: with a zero gradient Adam would still move by its momentum.

# %%
from splitjax.optim import mask_updates  # <-


def predict(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"]


init = jax.nn.initializers.lecun_normal()
hidden = {"kernel": init(jax.random.key(1), (8, 64)), "bias": jnp.zeros(64)}
params = {"hidden": hidden, "out": {"kernel": init(jax.random.key(2), (64, 1))}}
tx = mask_updates(optax.adam(1e-2), "hidden/.*", 0.9, key=jax.random.key(3))  # <-
opt_state = tx.init(params)


@jax.jit
def step(params, opt_state, x, y):
    def loss_fn(params):
        return jnp.mean((predict(params, x) - y) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


losses = []
for _ in range(STEPS):
    params, opt_state, loss = step(params, opt_state, x, y)
    losses.append(float(loss))
curves["optax, hidden layer moves every tenth time"] = losses

# %% [markdown]
# ## A codec between two functions of yours
#
# `encode` gives what would cross a wire, a tree of packed arrays; `decode` reads it.

# %%
from splitjax import codecs
from splitjax.core.codec import Context

codec = codecs.quantize(4, axis="channel")
z = predict(params, x) * jnp.linspace(0.1, 3.0, 16)
message, sender = codec.encode(z, codec.init(z), Context())
received, _ = codec.decode(message, codec.init(z))
size = sum(leaf.nbytes for leaf in jax.tree.leaves(message))
error = float(jnp.linalg.norm(received - z) / jnp.linalg.norm(z))
print(f"{z.nbytes:,} bytes as {size:,}, off by {error:.1%}")

# %%
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for name, losses in curves.items():
    axes.semilogy(losses, label=name)
axes.set(xlabel="step", ylabel="mean squared error")
axes.legend()
plt.show()
