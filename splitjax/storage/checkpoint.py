"""Checkpoints of a run, by Orbax, with the config that made them."""

import hashlib
import json
import pathlib
import shutil
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.job import Disagreement, at_each, at_first, gather
from splitjax.core.tree import Tree, flat
from splitjax.storage.differences import kind_of, kinds, unlike
from splitjax.storage.shared import make_shared
from splitjax.storage.whole import settle, whole

CONFIG, LEAVES = "config.json", "leaves.json"
# Orbax tells its operations apart by a number of the process: of two threads that save
# at once, one may wait for the other's folder. Several slots of a cloud do that.
ONE_AT_A_TIME = threading.Lock()


class CheckpointError(ValueError):
    """A checkpoint that cannot be used here."""


class Checkpoints:
    """Numbered checkpoints in a folder.

    The processes of a job (`parallel.join_processes`) make it, save and restore all
    together, each from one thread, in a folder that their hosts share. What is on the
    mesh is written in parts, by those that have them, and once; what each process has
    for itself must be alike, and is process 0's, as the facts are. Any other number of
    processes restores it.

    Args:
      folder: the run's folder; checkpoints lie in `checkpoints/STEP`.
      config: what the run depends on, as JSON types. A folder with another one is
        refused.
      keep: how many checkpoints stay.

    Raises:
      CheckpointError: when the folder holds the run of another config, or a process
        has another than process 0; the message names the fields that differ.
      NotShared: when a process of the job does not see the folder of process 0.
      Disagreement: by all methods that a job calls together, when one of its processes
        calls another, or has another step.

    Example:
      >>> import tempfile, numpy as np
      >>> store = Checkpoints(tempfile.mkdtemp(), {"rank": 8})
      >>> store.save(3, {"w": np.ones(2, np.float32)}, {"epoch": 1})
      >>> store.latest()
      3
      >>> tree, facts = store.restore({"w": np.zeros(2, np.float32)})
      >>> tree["w"].tolist(), facts
      ([1.0, 1.0], {'epoch': 1})
    """

    def __init__(self, folder: str | pathlib.Path, config: dict, *, keep: int = 1):
        self.folder = pathlib.Path(folder).absolute()
        self.keep = keep
        config = json.loads(json.dumps(config))
        first, *others = gather("the config of a run", config)
        for number, other in enumerate(others, 1):
            here, there = "in process 0", f"in process {number}"
            if rows := unlike(first, other, here, there):
                raise CheckpointError(
                    f"the processes of a job have unlike configs ({'; '.join(rows)}): "
                    "start all with the same options"
                )
        make_shared(self.folder)
        self._claimed = False
        at_first("config.json", lambda: self._claim(config), CheckpointError)

    def release(self) -> None:
        """Lets the folder go, if it was free before: for a run that cannot begin."""
        if self._claimed:
            (self.folder / CONFIG).unlink(missing_ok=True)
        self._claimed = False

    def _claim(self, config: dict) -> None:
        path = self.folder / CONFIG
        self._claimed = not path.exists()
        try:
            found = config if self._claimed else json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(
                f"{path} is no JSON ({error}): put a copy of it back, or take another "
                "--workdir"
            ) from error
        if rows := unlike(found, config, "there", "now"):
            raise CheckpointError(
                f"{self.folder} holds a run of another config ({'; '.join(rows)}). "
                "Take another --workdir, or the same config."
            )
        if self._claimed:
            with whole(path, mode=0o666) as file:
                file.write(json.dumps(config, indent=2).encode() + b"\n")

    def steps(self) -> list[int]:
        """The steps that are saved, in order."""
        found = (self.folder / "checkpoints").glob("*/facts.json")
        return sorted(int(path.parent.name) for path in found)

    def latest(self) -> int | None:
        """The last step, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, tree: Tree, facts: dict[str, Any]) -> None:
        """Saves a tree of arrays, and facts as JSON.

        The facts are written last: a folder without them is no checkpoint. All that
        this host has written of it is on disk before an older one goes.
        """
        from orbax.checkpoint import v1 as orbax

        at, folder = f"the save of step {step}", self.folder / "checkpoints" / str(step)
        _agree(at, tree, values=True)

        def clear() -> None:
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)

        def finish() -> None:
            text = json.dumps(facts).encode()
            with whole(folder / LEAVES, mode=0o666) as file:
                file.write(json.dumps(kinds(tree)).encode())
            for path in (*folder.rglob("*"), folder.parent, self.folder):
                settle(path)
            with whole(folder / "facts.json", mode=0o666) as file:
                file.write(text)
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(self.folder / "checkpoints" / str(old))

        at_first(at, clear, OSError)
        with ONE_AT_A_TIME:
            path = str(folder / "tree")
            at_each(at, lambda: orbax.save(path, _plain(tree)), CheckpointError)
        at_first(at, finish, CheckpointError)

    def restore(self, like: Tree, step: int | None = None) -> tuple[Tree, dict]:
        """Loads a tree of the names, shapes and dtypes of `like`, and the facts.

        An array lies where that of `like` does, and is as free as it to go elsewhere.

        Raises:
          CheckpointError: when there is none, or one of another tree; or when another
            process of the job cannot read it. That job must end: Orbax counts
            operations, and now unlike ones.
        """
        step = self.latest() if step is None else step
        at = f"the restoring of step {step}"
        _agree(at, like)
        if step is None:
            raise CheckpointError(f"no checkpoint in {self.folder}")
        folder = self.folder / "checkpoints" / str(step)
        self._same(folder, like)
        path = str(folder / "tree")
        leaves, treedef = jax.tree.flatten(like)
        wanted = _abstract(leaves)
        loaded: Any = at_each(at, lambda: _load(path, wanted), CheckpointError)
        pairs = enumerate(leaves)
        tree = treedef.unflatten([_as_free(loaded[str(i)], leaf) for i, leaf in pairs])
        return tree, self.facts(step)

    def _same(self, folder: pathlib.Path, like: Tree) -> None:
        # Arrays are saved by number: of another tree they could fit in a wrong place.
        path = folder / LEAVES
        if not path.exists():
            return  # of an older version
        found = json.loads(path.read_text())
        if rows := unlike(found, kinds(like), "there", "now"):
            raise CheckpointError(
                f"{folder} is of another tree, which differs in {len(rows)} leaves "
                f"({'; '.join(rows[:3])}): restore it into what was saved"
            )

    def facts(self, step: int) -> dict:
        """The facts of a checkpoint, without its tree."""
        path = self.folder / "checkpoints" / str(step) / "facts.json"
        return json.loads(path.read_text())


def _load(path: str, like: Any) -> Any:
    from orbax.checkpoint import v1 as orbax

    # Each process reads for itself: in a job, Orbax would have it wait for minutes for
    # one that cannot.
    alone, context = jax.process_index(), orbax.Context()
    context.multiprocessing.primary_host = alone
    context.multiprocessing.active_processes = {alone}
    context.multiprocessing.barrier_sync_key_prefix = str(alone)
    with ONE_AT_A_TIME, context:
        return orbax.load(path, like)


def _plain(tree: Tree) -> Any:
    # By number: codec messages and optax states have nodes that Orbax does not know.
    return {str(i): _on_all(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def _is_own(leaf: Any) -> bool:
    """Whether every process has a leaf for itself, not a part of it."""
    sharding = getattr(leaf, "sharding", None)
    return sharding is None or sharding.is_fully_addressable


def _on_all(leaf: Any) -> Any:
    """An array that all have as one array of the job: Orbax saves no other there."""
    if jax.process_count() == 1 or not isinstance(leaf, jax.Array) or not _is_own(leaf):
        return leaf
    ones = {device.process_index: device for device in jax.devices()}
    mesh = jax.sharding.Mesh(np.array([*ones.values()]), "process")
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    data = _numbers(leaf)
    made = jax.make_array_from_callback(data.shape, place, lambda at: data[at])
    return _as_kind(made, leaf)


def _as_kind(made: jax.Array, like: jax.Array) -> jax.Array:
    """Numbers as a key, where `like` is one."""
    if not _is_key(like):
        return made
    return jax.random.wrap_key_data(made, impl=jax.random.key_impl(like))


def _agree(at: str, tree: Tree, *, values: bool = False) -> None:
    """Raises unless all processes come to the same point with the same tree.

    Args:
      at: the point.
      tree: arrays, or what they shall be.
      values: whether leaves that each process has for itself must be equal, too.
    """
    if not jax.distributed.is_initialized():
        return

    def told(leaf: Any) -> str:
        kind = kind_of(leaf)
        if not _is_own(leaf):
            return f"{kind} on {leaf.sharding}"
        return f"{kind} of digest {_digest(leaf)}" if values else kind

    first, *others = gather(at, {name: told(leaf) for name, leaf in flat(tree).items()})
    for number, other in enumerate(others, 1):
        if rows := unlike(first, other, "in process 0", f"in process {number}"):
            raise Disagreement(
                f"the processes of a job come to {at} with trees that differ in "
                f"{len(rows)} leaves, as {rows[0]}: what each has for itself must be "
                "alike, or lie on a mesh of all"
            )


def _is_key(array: jax.Array) -> bool:
    return jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> np.ndarray:
    """What an array or a key holds, on the host."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _digest(leaf: Any) -> str:
    return hashlib.sha256(_numbers(leaf).tobytes()).hexdigest()[:8]


def _as_free(found: jax.Array, like: Any) -> jax.Array:
    """An array of one device, which JAX takes to others where `like` may go there.

    Orbax ties what it loads to its device: the edge's half of a run would then not be
    added to that of a cloud on a mesh.
    """
    if getattr(like, "committed", True) or not isinstance(found, jax.Array):
        return found
    return _as_kind(jnp.array(_numbers(found)), found)


def _abstract(leaves: list) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        str(i): jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", sharding)
        )
        for i, leaf in enumerate(leaves)
    }
