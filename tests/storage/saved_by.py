"""A checkpoint of a job of several processes, for `test_checkpoint`.

As a program it joins a job, restores what is in a folder, saves it as the next step,
then does what a job may not do, and prints what it had and what was said:
`python -m tests.storage.saved_by COORDINATOR PROCESSES NUMBER FOLDER`.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from splitjax.core.tree import flat
from splitjax.parallel.mesh import join_processes, make_cloud_mesh
from splitjax.storage import checkpoint
from splitjax.storage.checkpoint import Checkpoints
from splitjax.storage.lock import exclusive

CONFIG = {"rank": 8}
LOOSE = ("key", "count", "tied")  # the last is not


def tree(mesh: jax.sharding.Mesh, seed: int) -> dict:
    """Parameters and Adam on a mesh, a table and a key that are everywhere, and more.

    `own` is what each process has for itself: a key, a counter, numbers of the host.
    """
    rng = np.random.default_rng(seed)
    params = {"w": jnp.array(rng.random((8, 8), np.float32)), "b": jnp.ones(8)}
    tx = optax.adam(1e-2)
    with jax.numpy_dtype_promotion("standard"):  # adam raises a float to an integer
        _, state = tx.update(jax.tree.map(jnp.sin, params), tx.init(params))

    def lay(leaf):
        host = np.asarray(leaf)
        spec = P("data", "tensor") if host.shape == (8, 8) else P()
        place = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(host.shape, place, lambda at: host[at])

    key = jax.random.key(seed)
    bits = rng.integers(0, 2**16, (256, 256), np.uint16)
    # Without NaNs, of which the emitters that tests/conftest.py chooses make one.
    bits = np.where(bits & 0x7FFF > 0x7F80, bits & 0xBFFF, bits).astype(np.uint16)
    table = bits.view(jnp.bfloat16)
    return {
        **jax.tree.map(lay, {"params": params, "opt": state, "table": table}),
        "key": jax.random.wrap_key_data(lay(jax.random.key_data(key))),
        "own": {
            "key": jax.random.fold_in(key, 1),
            "count": jnp.int32(seed),
            "tied": jax.device_put(jnp.full(3, seed), jax.local_devices()[1]),
            "host": np.full(3, seed, np.int32),
        },
    }


def bits(made: dict) -> dict[str, str]:
    """A digest of each leaf by its path; of the whole of it, wherever it lies."""
    found = {}
    for name, leaf in flat(made).items():
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        host = np.asarray(leaf)
        digest = hashlib.sha256(host.tobytes()).hexdigest()
        found[name] = f"{host.dtype}{host.shape} {digest}"
    return found


def said(work: Callable[[], object]) -> str:
    """What kind of error it raises, and its words."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(coordinator: str, processes: str, number: str, folder: str) -> None:
    """Prints as JSON what was restored, and what was said to each bad call."""
    jax.config.update("jax_num_cpu_devices", 8 // int(processes))
    join_processes(coordinator, processes=int(processes), number=int(number))
    mesh, here = make_cloud_mesh("data=4,tensor=2"), int(number)
    store, like = Checkpoints(folder, CONFIG, keep=9), tree(mesh, 1)
    made, facts = store.restore(like)
    found = {"made": bits(made), "facts": facts}
    assert made["params"]["w"].sharding == like["params"]["w"].sharding
    assert [made["own"][name].committed for name in LOOSE] == [False, False, True]
    store.save(2, made, facts)
    found["again"] = bits(store.restore(like)[0])

    def both_hold():
        with exclusive(folder), exclusive(folder):
            pass

    def broken():
        load = checkpoint._load
        with mock.patch.object(checkpoint, "_load") as loaded:
            loaded.side_effect = lambda path, like: load(path + "_lost" * here, like)
            store.restore(like)

    parted = {**made, "own": {**made["own"], "host": np.int32([here, 0, 0])}}
    odd = {"odd": object()}  # no JSON
    found["said"] = {
        "step": said(lambda: store.save(3 + here, made, facts)),
        "restored": said(lambda: store.restore(like, 1 + here)),
        "call": said(
            lambda: store.save(3, made, facts) if here else store.restore(like)
        ),
        "tree": said(lambda: store.save(3, parted, facts)),
        "facts": said(lambda: store.save(3, made, odd)),
        "config": said(lambda: Checkpoints(folder, {"rank": 8 + here})),
        "run": said(lambda: Checkpoints(folder, {"rank": 4})),
        "folder": said(lambda: Checkpoints(f"{folder}/{here}", CONFIG)),
        "lock": said(both_hold),
    }
    store.save(3, made, facts)
    found["steps"] = store.steps()
    found["said"]["broken"] = said(broken)  # nothing can be saved after it
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
