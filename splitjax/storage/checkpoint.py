"""Checkpoints of a run, by Orbax, with the config that made them."""

import json
import pathlib
import shutil
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.tree import Tree

CONFIG = "config.json"
# Orbax tells its operations apart by a number of the process: of two threads that save
# at once, one may wait for the other's folder. Several slots of a cloud do that.
ONE_AT_A_TIME = threading.Lock()


class CheckpointError(ValueError):
    """A checkpoint that cannot be used here."""


class Checkpoints:
    """Numbered checkpoints in a folder.

    Args:
      folder: the run's folder; checkpoints lie in `checkpoints/STEP`.
      config: what the run depends on, as JSON types. A folder with another one is
        refused.
      keep: how many checkpoints stay.

    Raises:
      CheckpointError: when the folder holds the run of another config; the message
        names the fields that differ.

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
        path = self.folder / CONFIG
        config = json.loads(json.dumps(config))
        if path.exists():
            _check(json.loads(path.read_text()), config, self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config, indent=2) + "\n")

    def steps(self) -> list[int]:
        """The steps that are saved, in order."""
        found = (self.folder / "checkpoints").glob("*/facts.json")
        return sorted(int(path.parent.name) for path in found)

    def latest(self) -> int | None:
        """The last step, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, tree: Tree, facts: dict[str, Any]) -> None:
        """Saves a tree of arrays, and facts as JSON.

        The facts are written last: a folder without them is no checkpoint.
        """
        from orbax.checkpoint import v1 as orbax

        folder = self.folder / "checkpoints" / str(step)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        with ONE_AT_A_TIME:
            orbax.save(str(folder / "tree"), _plain(tree))
        part = folder / "facts.part"
        part.write_text(json.dumps(facts))
        part.rename(folder / "facts.json")
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / "checkpoints" / str(old))

    def restore(self, like: Tree, step: int | None = None) -> tuple[Tree, dict]:
        """Loads a tree of the structure, shapes and dtypes of `like`, and the facts.

        An array lies where that of `like` does, and is as free as it to go elsewhere.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise CheckpointError(f"no checkpoint in {self.folder}")
        folder = self.folder / "checkpoints" / str(step)
        leaves, treedef = jax.tree.flatten(like)
        loaded: Any = _load(str(folder / "tree"), _abstract(leaves))
        pairs = enumerate(leaves)
        tree = treedef.unflatten([_as_free(loaded[str(i)], leaf) for i, leaf in pairs])
        return tree, self.facts(step)

    def facts(self, step: int) -> dict:
        """The facts of a checkpoint, without its tree."""
        path = self.folder / "checkpoints" / str(step) / "facts.json"
        return json.loads(path.read_text())


def _load(path: str, like: Any) -> Any:
    from orbax.checkpoint import v1 as orbax

    with ONE_AT_A_TIME:
        return orbax.load(path, like)


def _plain(tree: Tree) -> Any:
    # By number: codec messages and optax states have nodes that Orbax does not know.
    return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _as_free(found: jax.Array, like: Any) -> jax.Array:
    """An array of one device, which JAX takes to others where `like` may go there.

    Orbax ties what it loads to its device: the edge's half of a run would then not be
    added to that of a cloud on a mesh.
    """
    if getattr(like, "committed", True) or not isinstance(found, jax.Array):
        return found
    if jax.dtypes.issubdtype(found.dtype, jax.dtypes.prng_key):
        data = jnp.array(np.asarray(jax.random.key_data(found)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(found))
    return jnp.array(np.asarray(found))


def _abstract(leaves: list) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {
        str(i): jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", sharding)
        )
        for i, leaf in enumerate(leaves)
    }


def _check(found: dict, config: dict, folder: pathlib.Path) -> None:
    names = sorted({*found, *config})
    rows = [
        f"{name}: {found.get(name)!r} there, {config.get(name)!r} now"
        for name in names
        if found.get(name) != config.get(name)
    ]
    if rows:
        raise CheckpointError(
            f"{folder} holds a run of another config ("
            + "; ".join(rows)
            + "). Take another --workdir, or the same config."
        )
