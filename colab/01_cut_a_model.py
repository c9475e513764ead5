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
# # Cut your own model
#
# Take a Flax model of yours, in Linen or in NNX, cut it between an edge and a cloud,
# train it through the cut on real images of digits, and see what crosses the wire.
# It runs on a CPU in about a minute; on a GPU or TPU nothing changes.

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
from sklearn.datasets import load_digits

from splitjax import Link, Split, chain, codecs, cut
from splitjax.adapters.linen import from_linen
from splitjax.adapters.nnx import from_nnx
from splitjax.algorithms.split import split_learning
from splitjax.runtime.local import Local

EPOCHS = 2 if os.environ.get("SMALL") else 15

# %% [markdown]
# ## Real data: 1,797 images of handwritten digits, 8 x 8

# %%
digits = load_digits()
images = (digits.images / 16.0).astype(np.float32)[..., None]
labels = digits.target.astype(np.int32)
order = np.random.default_rng(0).permutation(len(images))
images, labels = images[order], labels[order]
train_x, train_y, test_x, test_y = (
    images[:1437],
    labels[:1437],
    images[1437:],
    labels[1437:],
)

# %% [markdown]
# ## A model as ordered, named pieces
#
# Each piece is an ordinary Linen module. A flag `train` is passed where it has one.


# %%
class Convolution(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.relu(nn.Conv(self.features, (3, 3))(x))
        return nn.Dropout(0.1, deterministic=not train)(x)


class Head(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x.reshape(len(x), -1))))


linen_stages = (
    from_linen(Convolution(16), "conv_0"),
    from_linen(Convolution(8), "conv_1"),
    from_linen(Head(), "head"),
)


# %% [markdown]
# The same in NNX. A module is split once, at the border: its parameters are a pytree.


# %%
class NnxConvolution(nnx.Module):
    def __init__(self, inputs, features, rngs):
        self.conv = nnx.Conv(inputs, features, (3, 3), rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return self.drop(nnx.relu(self.conv(x)))


class NnxHead(nnx.Module):
    def __init__(self, rngs):
        self.one = nnx.Linear(8 * 8 * 8, 64, rngs=rngs)
        self.two = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.two(nnx.relu(self.one(x.reshape(len(x), -1))))


rngs = nnx.Rngs(0)
nnx_stages = (
    from_nnx(NnxConvolution(1, 16, rngs), "conv_0"),
    from_nnx(NnxConvolution(16, 8, rngs), "conv_1"),
    from_nnx(NnxHead(rngs), "head"),
)

# %% [markdown]
# ## Cut it, and train it through the cut
#
# The edge holds the images and what stands before the cut; the cloud holds the rest.
# With two places the last piece comes back to the edge (the U shape), and labels never
# leave it. Every message passes a real frame, so the bytes are counted, not computed.


# %%
def loss(logits, target):
    value = optax.softmax_cross_entropy_with_integer_labels(logits, target["y"]).mean()
    return value, {}


def train(stages, after=(), link=None, seed=0):
    """Test accuracy and bytes a step, after EPOCHS."""
    link = link or Link(chain(), chain())
    places = (after,) if isinstance(after, str) else tuple(after)
    split = Split(cut(stages, after=places), (link,) * len(places), loss)
    driver = Local(split_learning(split, optax.adam(3e-3)), jax.random.key(seed))
    params, state = split.init(jax.random.key(seed), jnp.zeros((32, 8, 8, 1)))
    run = driver.start(params, state, jnp.zeros((32, 8, 8, 1)))
    losses = []
    for epoch in range(EPOCHS):
        order = np.random.default_rng([seed, epoch]).permutation(len(train_x))
        for rows in order[: len(order) // 32 * 32].reshape(-1, 32):
            target = {"y": train_y[rows]}
            batch = {"x": train_x[rows], "target": target, "weight": np.float32(1)}
            run, metrics = driver.step(run, [batch])
            losses.append(float(metrics["loss"]))
    sent = driver.meter.totals(kind="train")
    guessed = np.asarray(driver.predict(run, test_x)).argmax(-1)
    total = (sent["bytes_up"] + sent["bytes_down"]) / len(losses)
    return {
        "accuracy": float((guessed == test_y).mean()),
        "bytes": total,
        "losses": losses,
    }


whole = train(linen_stages)
plain = train(linen_stages, after="conv_1")
print(f"un-split: {whole['accuracy']:.3f}")
print(f"cut after conv_1: {plain['accuracy']:.3f}, {plain['bytes']:,.0f} bytes a step")

# %% [markdown]
# Without a codec the cut changes nothing: the losses are those of the whole model.

# %%
print(
    "largest difference of a loss:",
    max(np.abs(np.subtract(whole["losses"], plain["losses"]))),
)
assert np.allclose(whole["losses"], plain["losses"], rtol=1e-4, atol=1e-5)

# %% [markdown]
# ## Fewer bytes: quantize what crosses
#
# Forward with 2 to 8 bits to the nearest point of a grid, backward stochastically, so
# that the gradient keeps its mean.

# %%
rows = [("float32", plain)]
for bits in (8, 4, 2):
    link = Link(
        codecs.quantize(bits, axis="channel"),
        codecs.quantize(bits, axis="channel", rounding="stochastic"),
    )
    rows.append((f"{bits} bits", train(linen_stages, "conv_1", link)))
rows.append(
    (
        "NNX, 4 bits",
        train(
            nnx_stages,
            "conv_1",
            link := Link(
                codecs.quantize(4, axis="channel"),
                codecs.quantize(4, axis="channel", rounding="stochastic"),
            ),
        ),
    )
)
rows.append(("NNX, U shape, 4 bits", train(nnx_stages, ("conv_0", "conv_1"), link)))
for name, row in rows:
    print(
        f"{name:<22} accuracy {row['accuracy']:.3f}  {row['bytes']:>9,.0f} bytes a step"
    )

# %%
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.axhline(whole["accuracy"], color="gray", ls="--", label="un-split")
for name, row in rows:
    axes.semilogx(row["bytes"], row["accuracy"], "o", label=name)
axes.set(xlabel="bytes a step, both ways", ylabel="test accuracy", title="digits")
axes.legend()
plt.show()
