import concurrent.futures
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from splitjax.parallel.mesh import make_cloud_mesh, parse
from splitjax.storage import checkpoint
from splitjax.storage.checkpoint import CheckpointError, Checkpoints
from tests.parallel.jobs import job
from tests.storage import saved_by


class Inner(NamedTuple):
    smooth: Any
    rough: Any


class Outer(NamedTuple):
    inner: Inner
    count: Any


CONFIG = {"rank": 8, "seeds": (0, 1), "seed": 0}


@pytest.fixture
def store(tmp_path):
    return Checkpoints(tmp_path, CONFIG)


def update(tx, gradient, state):
    with jax.numpy_dtype_promotion("standard"):  # adam raises a float to an integer
        return tx.update(gradient, state)


def tree(key):
    """Parameters, an optimizer's state, nested NamedTuples; every dtype that we use."""
    params = {"kernel": jax.random.normal(key, (3, 2)), "bias": jnp.ones(2)}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    state = tx.init(params)
    for _ in range(2):
        updates, state = update(tx, jax.tree.map(jnp.sin, params), state)
        params = optax.apply_updates(params, updates)
    link = Outer(
        Inner((jnp.arange(5, dtype=jnp.uint8), ()), jnp.array([True, False])),
        jnp.int32(7),
    )
    odd = {"nan": jnp.array([jnp.nan, -0.0]), "low": jnp.ones(3, jnp.bfloat16) / 3}
    return {"params": params, "opt": state, "link/0": link, "odd": odd, "none": ()}


def bits(leaf):
    leaf = np.asarray(leaf)
    return leaf.dtype, leaf.shape, leaf.tobytes()


def test_a_tree_comes_back_to_the_bit(store, key):
    given = tree(key)
    facts = {"step": 3, "scores": [{"dev": 0.1}], "seconds": 1.25}
    store.save(3, given, facts)
    like = jax.tree.map(jnp.zeros_like, given)
    made, found = Checkpoints(store.folder, CONFIG).restore(like)
    assert jax.tree.structure(made) == jax.tree.structure(given)
    pairs = zip(jax.tree.leaves(made), jax.tree.leaves(given), strict=True)
    assert all(bits(one) == bits(other) for one, other in pairs)
    assert isinstance(made["link/0"].inner, Inner) and found == facts


@pytest.mark.slow
def test_every_number_of_bfloat16_comes_back(tmp_path):
    """NaNs by their bits, too, in a process that compiles as users do."""
    code = """
import sys
import jax, jax.numpy as jnp, numpy as np
from splitjax.parallel.mesh import make_cloud_mesh
from splitjax.storage.checkpoint import Checkpoints

jax.config.update("jax_num_cpu_devices", 8)
mesh = make_cloud_mesh("data=2,tensor=4")
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
bits = np.arange(2**16, dtype=np.uint16)
table = jax.device_put(bits.view(jnp.bfloat16), everywhere)
store = Checkpoints(sys.argv[1], {})
store.save(1, {"table": table}, {})
found = store.restore({"table": table})[0]["table"]
assert found.dtype == jnp.bfloat16
np.testing.assert_array_equal(np.asarray(found).view(np.uint16), bits)
"""
    users = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, **users}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_tree_comes_back_on_another_mesh(store, key):
    """Its shards lie elsewhere, or together on one device; the values are the same."""
    w = jax.random.normal(key, (8, 8))
    kept = {"w": w, "count": jnp.int32(3)}
    places = {
        "data=2,tensor=4": P("data", "tensor"),
        "data=8": P(None, "data"),
        "tensor=4": P("tensor"),
        "data=1": P(),
    }

    def lay(text, tree):
        sizes = math.prod(parse(text).values())
        mesh = make_cloud_mesh(text, devices=jax.devices()[:sizes])
        over = {"w": places[text], "count": P()}
        return jax.tree.map(
            lambda leaf, spec: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)
            ),
            tree,
            over,
        )

    for step, (old, new) in enumerate(itertools.pairwise([*places, "data=8"])):
        spec = lay(old, kept)
        given = jax.tree.map(lambda a, s: jax.device_put(a, s.sharding), kept, spec)
        store.save(step, given, {})
        made, _ = store.restore(lay(new, kept))
        assert made["w"].sharding == lay(new, kept)["w"].sharding
        jax.tree.map(np.testing.assert_array_equal, made, kept)


def test_an_array_that_is_free_to_move_is_so_again(store):
    """So what an edge computes on one device is added to what a mesh computes."""
    mesh = make_cloud_mesh("data=8")
    spread = jax.device_put(jnp.ones(8), NamedSharding(mesh, P("data")))
    tied = jax.device_put(jnp.ones(8), jax.devices()[1])
    given = {"free": jnp.arange(8.0), "spread": spread, "tied": tied}
    given["key"] = jax.random.key(3)
    store.save(1, given, {})
    made, _ = store.restore(given)
    assert made["key"] == given["key"] and not made["key"].committed
    np.testing.assert_array_equal(made["free"] + made["spread"], np.arange(1.0, 9.0))
    assert made["spread"].sharding == spread.sharding
    assert made["tied"].committed and made["tied"].devices() == tied.devices()


def test_a_restored_optimizer_goes_on_as_the_first(store, key):
    given = tree(key)
    store.save(1, given, {})
    made, _ = store.restore(jax.tree.map(jnp.zeros_like, given))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    steps = [update(tx, t["params"], t["opt"])[0] for t in (given, made)]
    jax.tree.map(np.testing.assert_array_equal, *steps)


def test_another_config_is_refused_by_the_names_that_differ(store):
    other = {**CONFIG, "rank": 4, "new": True}
    with pytest.raises(
        CheckpointError, match=r"\(new: nothing .*rank: 8 there, 4 now\)"
    ):
        Checkpoints(store.folder, other)
    saved = json.loads((store.folder / "config.json").read_text())
    assert saved == {"rank": 8, "seeds": [0, 1], "seed": 0}
    Checkpoints(store.folder, dict(reversed(CONFIG.items())))


def test_a_config_is_written_once(store):
    """A full disk, or a loss of power, must not take it from a run that has one."""
    path = store.folder / "config.json"
    before = path.stat()
    Checkpoints(store.folder, CONFIG)
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_config_that_is_damaged_is_named(store):
    path = store.folder / "config.json"
    path.write_text("")
    with pytest.raises(CheckpointError, match=f"{path} is no JSON"):
        Checkpoints(store.folder, CONFIG)


def test_a_checkpoint_is_on_disk_before_the_older_one_goes(store, monkeypatch):
    """The journal of what came after the older one goes with it, too."""
    store.save(1, {"w": jnp.ones(2)}, {})
    synced, fsync, remove = set(), os.fsync, shutil.rmtree

    def spied(number):
        synced.add(pathlib.Path(os.readlink(f"/proc/self/fd/{number}")))
        fsync(number)

    def removed(path, *args, **kwargs):
        if str(path) == str(old):
            checked.append(needed() - synced)
        remove(path, *args, **kwargs)

    folder, checked = store.folder / "checkpoints", []
    new, old = folder / "2", folder / "1"

    def needed():
        files = {path for path in new.rglob("*") if path.name != "facts.json"}
        return files | {folder, new, new / "facts.part"}

    monkeypatch.setattr(os, "fsync", spied)
    monkeypatch.setattr(shutil, "rmtree", removed)
    store.save(2, {"w": jnp.zeros(2)}, {})
    assert checked == [set()] and (new / "facts.json").exists() and not old.exists()


def test_a_folder_is_let_go_by_who_claimed_it_only(store):
    Checkpoints(store.folder, CONFIG).release()
    with pytest.raises(CheckpointError, match="another config"):
        Checkpoints(store.folder, {})
    store.release()
    store.release()
    Checkpoints(store.folder, {})


def test_the_last_ones_are_kept(tmp_path):
    store = Checkpoints(tmp_path, CONFIG, keep=2)
    assert store.latest() is None and store.steps() == []
    for step in (2, 10, 9):
        store.save(step, {"w": jnp.full(2, step)}, {"step": step})
    assert store.steps() == [9, 10] and store.latest() == 10
    like = {"w": jnp.zeros(2, jnp.int32)}
    assert store.restore(like)[1] == {"step": 10}
    made, facts = store.restore(like, 9)
    assert made["w"].tolist() == [9, 9] and facts == {"step": 9}


@pytest.mark.parametrize("lost", ["facts.json", "tree"])
def test_a_crash_while_saving_leaves_the_older_one(lost, store, monkeypatch):
    store.save(1, {"w": jnp.ones(2)}, {"step": 1})

    def crash(tree):
        raise TypeError

    with monkeypatch.context() as patch, pytest.raises(TypeError):
        if lost == "tree":
            patch.setattr(checkpoint, "_plain", crash)
        store.save(2, {"w": jnp.zeros(2)}, {"step": object()})  # facts fail as JSON
    assert (store.folder / "checkpoints" / "2" / "tree").exists() == (lost != "tree")
    again = Checkpoints(store.folder, CONFIG)
    assert again.latest() == 1
    assert again.restore({"w": jnp.zeros(2)})[0]["w"].tolist() == [1.0, 1.0]
    again.save(2, {"w": jnp.zeros(2)}, {"step": 2})
    assert again.steps() == [2]


def test_an_empty_folder_has_nothing_to_restore(store):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        store.restore({"w": jnp.zeros(2)})


@pytest.mark.parametrize(
    ("like", "words"),
    [
        (dict(w=np.zeros(3, "f4"), b=np.zeros(2, "f4")), r"w: .*\[2\]' there, .*\[3\]"),
        (dict(w=np.zeros(2, "i4"), b=np.zeros(2, "f4")), "w: 'float32.* there, 'int"),
        (dict(w=np.zeros(2, "f4")), "b: 'float32.* there, nothing now"),
        (dict(a=np.zeros(2, "f4"), v=np.zeros(2, "f4")), "in 4 .*a: nothing there"),
    ],
    ids=["shape", "dtype", "fewer", "names alone"],
)
def test_a_checkpoint_of_another_tree_is_refused_by_its_leaves(store, like, words):
    """Names alone count: arrays have numbers, and would come back in wrong places."""
    store.save(1, {"w": jnp.ones(2), "b": jnp.full(2, 2.0)}, {})
    with pytest.raises(CheckpointError, match=words):
        store.restore(like)


def test_a_checkpoint_without_names_comes_back(store):
    """Older versions wrote none."""
    store.save(1, {"w": jnp.ones(2)}, {})
    (store.folder / "checkpoints" / "1" / "leaves.json").unlink()
    assert store.restore({"w": jnp.zeros(2)})[0]["w"].tolist() == [1.0, 1.0]


def test_threads_save_and_load_at_the_same_time(tmp_path):
    """As the slots of a cloud do."""
    tree = {str(i): np.full(3, i, np.float32) for i in range(8)}

    def run(number):
        for turn in range(15):
            store = Checkpoints(tmp_path / f"{number}_{turn}", {})
            store.save(0, tree, {"turn": turn})
            found, facts = store.restore(tree)
            assert facts == {"turn": turn} and (found["7"] == tree["7"]).all()

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(run, range(3)))


# Several processes.


@pytest.mark.slow
def test_a_job_of_two_processes_and_one_process_restore_each_others(tmp_path):
    """Of another mesh, to the bit; and what a job may not do is named to both of it."""
    mesh = make_cloud_mesh("data=2,tensor=4")
    store = Checkpoints(tmp_path, saved_by.CONFIG, keep=9)
    given, facts = saved_by.tree(mesh, 0), {"step": 1, "scores": [0.1]}
    store.save(1, given, facts)
    done = job("tests.storage.saved_by", [str(tmp_path)] * 2)
    assert [one.returncode for one in done] == [0, 0], done[0].stderr[-2000:]
    first, second = (json.loads(one.stdout.splitlines()[-1]) for one in done)
    want = saved_by.bits(given)
    for found in first, second:
        assert found["made"] == found["again"] == want
        assert found["facts"] == facts and found["steps"] == [1, 2, 3]
    made, found = store.restore(saved_by.tree(mesh, 1), 2)
    assert saved_by.bits(made) == want and found == facts
    files = (tmp_path / "checkpoints" / "2").rglob("*")
    size = sum(path.stat().st_size for path in files)
    assert given["table"].nbytes < size < 2 * given["table"].nbytes  # written once

    says = {
        "step": "Disagreement: process 1 is at the save of step 4, and process 0 at",
        "restored": "Disagreement: process 1 is at the restoring of step 2, and",
        "call": "Disagreement: process 1 is at the save of step 3, and process 0 at",
        "tree": "Disagreement: .* differ in 1 leaves, as own/host: 'int32.3. of digest",
        "config": "CheckpointError: .*rank: 8 in process 0, 9 in process 1",
        "run": "CheckpointError: .* holds a run of another config .rank: 8 there, 4",
        "folder": "NotShared: process 1 .of 2. does not see .* must share its folder",
        "lock": "InUse: .* is in use by process",
        "broken": "(CheckpointError: process 1 failed at the restor.*|Invalid.*)_lost",
        "facts": "(TypeError|CheckpointError: process 0 failed at the save of step 3)",
    }
    for found in first["said"], second["said"]:
        assert set(found) == set(says)
        assert [name for name in says if not re.match(says[name], found[name])] == []
