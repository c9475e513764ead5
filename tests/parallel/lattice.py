"""A tied decoder on a mesh: one training step for tests, and for processes they start.

As a program it joins a job of several processes and prints what it made:
`python -m tests.parallel.lattice COORDINATOR PROCESSES NUMBER CONFIG`.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from splitjax.core.stage import join, repeat
from splitjax.core.tree import flat
from splitjax.models.decoder import decoder
from splitjax.models.decoder_config import DecoderConfig
from splitjax.parallel.mesh import check_agreement, join_processes, make_cloud_mesh
from splitjax.parallel.rules import place, place_like
from splitjax.parallel.spmd import pipelined

ROWS, TOKENS, MICROBATCHES = 16, 4, 2
CONFIG = DecoderConfig(
    vocab=16, width=16, heads=2, kv_heads=2, layers=1, ffn=16, init_std=0.2
)
EMBED, ATTENTION, FFN, NORM, HEAD = decoder(CONFIG)
BLOCK = join([ATTENTION, FFN], "block")
TX = optax.adam(1e-3)


def model(mesh: Mesh | None = None, blocks: int = 4):
    """Embedding, a stack of blocks (a pipeline on a mesh), norm, tied head."""
    stack = repeat(BLOCK, blocks)
    if mesh is not None:
        stack = pipelined(stack, mesh, microbatches=MICROBATCHES)
    return join([EMBED, stack, NORM, HEAD])


def batch():
    ids = jax.random.randint(jax.random.key(2), (ROWS, TOKENS), 0, CONFIG.vocab)
    return {"ids": ids, "mask": jnp.ones((ROWS, TOKENS), bool).at[0, 2:].set(False)}


def start():
    """Parameters, empty state, optimizer state."""
    params, state = jax.jit(model().init)(jax.random.key(0), batch())
    return params, state, TX.init(params)


def step(stage, state):
    """`(params, opt, x) -> params, opt, loss, grads`."""

    def loss(params, x):
        logits, _, _ = stage.apply(params, state, x, key=None, train=False)
        target = jnp.roll(x["ids"], -1, 1)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        return (each * x["mask"].astype(each.dtype)).mean()

    def run(params, opt, x):
        value, grads = jax.value_and_grad(loss)(params, x)
        with jax.numpy_dtype_promotion("standard"):  # adam raises a float to an integer
            updates, opt = TX.update(grads, opt)
        return optax.apply_updates(params, updates), opt, value, grads

    return run


def on_mesh(mesh: Mesh, run, params, opt, x):
    """The step as a program of the mesh, and its arguments laid on it."""
    over, _ = place(params, mesh, stacked="block/.*")
    everywhere = NamedSharding(mesh, PartitionSpec())
    places = over, place_like(opt, params, over, mesh)
    rows = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec("data")), x)
    program = jax.jit(
        run, in_shardings=(*places, rows), out_shardings=(*places, everywhere, over)
    )
    return program, jax.device_put((params, opt, x), (*places, rows))


def train(program, params, opt, x, steps: int = 5):
    """Losses of the steps, the first gradient, the last parameters."""
    losses, first = [], None
    for _ in range(steps):
        params, opt, value, grads = program(params, opt, x)
        losses.append(value)
        first = grads if first is None else first
    return losses, first, params


def spoilt(params, block: int):
    """The parameters with no number in one block of the stack, where they lie."""

    @jax.jit
    def run(a):
        return a.at[block].set(jnp.nan)

    stack = jax.tree.map(lambda a: jax.device_put(run(a), a.sharding), params["block"])
    return {**params, "block": stack}


def main(coordinator: str, processes: str, number: str, config: str) -> None:
    """Prints losses, the gradient's leaves and what a spoilt block gives, as JSON."""
    jax.config.update("jax_num_cpu_devices", 8 // int(processes))
    join_processes(coordinator, processes=int(processes), number=int(number))
    options = json.loads(config)
    check_agreement(options)
    params, state, opt = jax.tree.map(np.asarray, start())
    mesh = make_cloud_mesh(options["mesh"])
    x = jax.tree.map(np.asarray, batch())
    program, args = on_mesh(mesh, step(model(mesh), state), params, opt, x)
    losses, grads, _ = train(program, *args, steps=2)
    everywhere = NamedSharding(mesh, PartitionSpec())
    whole = jax.jit(lambda tree: tree, out_shardings=everywhere)(grads)
    bad = program(spoilt(args[0], 3), *args[1:])[2]
    found = {
        "losses": [float(value) for value in losses],
        "grads": {k: np.asarray(a).tolist() for k, a in flat(whole).items()},
        "spoilt": [bool(np.isnan(part.data)) for part in bad.addressable_shards],
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
