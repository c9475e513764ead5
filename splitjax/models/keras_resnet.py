"""A pretrained ResNet-50 in the layout of Keras, as TensorFlow.js stores it."""

import json
import math
import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from splitjax.core.stage import Stage
from splitjax.core.tree import Tree
from splitjax.models.pixels import pixels
from splitjax.models.resnet import KERAS

# Blue, green, red: the means that its pictures had, of values from 0 to 255.
MEAN = (103.939, 116.779, 123.68)
NORM = {"scale": "gamma", "bias": "beta"}
STATISTICS = {"mean": "moving_mean", "var": "moving_variance"}


def keras_pixels(*, flip: bool = False, pad: int = 0, size: int = 0) -> Stage:
    """The stage "pixels" that its weights go with: BGR minus means, not scaled.

    It saw pictures of 224 x 224. All its stages but the head's mean are convolutions,
    so that it runs at any size from 32 on, and fine-tunes there; its own 1000 classes
    need the size it saw (`size=224` scales up).

    Args:
      flip: see `models.pixels`.
      pad: likewise.
      size: likewise.

    Example:
      >>> keras_pixels().name
      'pixels'
    """
    return pixels(MEAN, (1.0,) * 3, flip=flip, pad=pad, size=size, reverse=True)


def load(folder: str | pathlib.Path) -> tuple[Tree, Tree]:
    """Parameters and state of `resnet(KERAS, 1000)` from a folder, by stage name.

    Args:
      folder: has model.json, whose `weightsManifest` names arrays and shards, and the
        shards beside it.

    Returns:
      Float32 parameters and running statistics, for `pretrained.start`. Leave the head
      out where there are other classes.

    Raises:
      FileNotFoundError: when a file is missing.
      ValueError: when an array is missing, of another shape or dtype, or no part of the
        model, or when the shards hold more or less than the manifest says.

    Example:
      >>> load("/nowhere")
      Traceback (most recent call last):
      ...
      FileNotFoundError: /nowhere has no model.json; ...

    Reference:
      He et al., Deep Residual Learning for Image Recognition, 2015 (arXiv:1512.03385).

    Differs: convolutions have biases, and norms an epsilon of 1e-3, as Keras's first
      version has it.
    """
    folder = pathlib.Path(folder)
    arrays = read_arrays(folder)
    params: dict = {}
    state: dict = {}
    for stage, path, name, kind in _entries():
        tree = params if kind == "params" else state
        if name not in arrays:
            raise ValueError(f"{folder} does not fit ResNet-50: it lacks {name!r}")
        node = tree.setdefault(stage, {})
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = jnp.asarray(arrays.pop(name))
    if arrays:
        raise ValueError(
            f"{folder} does not fit ResNet-50: unexpected {sorted(arrays)[:5]}"
        )
    return params, state


def read_arrays(folder: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a TensorFlow.js folder by name; see `load`.

    Example:
      >>> read_arrays.__name__
      'read_arrays'
    """
    folder, found = pathlib.Path(folder), {}
    if not (folder / "model.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no model.json; run `python -m splitjax.data.fetch resnet50`"
        )
    manifest = json.loads((folder / "model.json").read_text())["weightsManifest"]
    for group in manifest:
        stream, place = _stream(folder, group["paths"]), 0
        for entry in group["weights"]:
            name, shape = entry["name"], tuple(entry["shape"])
            if entry["dtype"] != "float32" or "quantization" in entry:
                raise ValueError(f"{folder}: {name!r} is not plain float32: {entry}")
            end = place + 4 * math.prod(shape)
            if end > len(stream):
                raise ValueError(f"{folder}: the shards end before {name!r} does")
            found[name] = np.frombuffer(stream[place:end], "<f4").reshape(shape)
            place = end
        if place != len(stream):
            raise ValueError(
                f"{folder}: the shards have {len(stream)} bytes, the manifest {place}"
            )
    return found


def _stream(folder: pathlib.Path, names: list[str]) -> memoryview:
    """The shards of a group, one after the other."""
    for name in names:
        if pathlib.PurePath(name).name != name:
            raise ValueError(f"{folder}: the shard {name!r} lies outside of the folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}")
    return memoryview(b"".join((folder / name).read_bytes() for name in names))


def _entries() -> Iterator[tuple[str, tuple[str, ...], str, str]]:
    """Stage, path, the array's name, and "params" or "state"."""

    def layer(stage, conv, norm, names):
        for leaf in ("kernel", "bias"):
            yield stage, (conv, leaf), f"{names[0]}/{leaf}", "params"
        for leaf, theirs in NORM.items():
            yield stage, (norm, leaf), f"{names[1]}/{theirs}", "params"
        for leaf, theirs in STATISTICS.items():
            path = ("batch_stats", norm, leaf)
            yield stage, path, f"{names[1]}/{theirs}", "state"

    yield from layer("stem", "conv", "norm", ("conv1", "bn_conv1"))
    for number, count in enumerate(KERAS.blocks, 1):
        for index in range(count):
            stage, block = f"layer{number}/{index}", f"{number + 1}{'abcdef'[index]}"
            for i, branch in enumerate(("2a", "2b", "2c"), 1):
                names = f"res{block}_branch{branch}", f"bn{block}_branch{branch}"
                yield from layer(stage, f"conv_{i}", f"norm_{i}", names)
            if index == 0:
                names = f"res{block}_branch1", f"bn{block}_branch1"
                yield from layer(stage, "skip_conv", "skip_norm", names)
    for leaf in ("kernel", "bias"):
        yield "head", ("classifier", leaf), f"fc1000/{leaf}", "params"
