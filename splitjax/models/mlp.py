"""A small multi-layer perceptron in Linen and in NNX, for tests and first steps."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from splitjax.adapters.linen import from_linen
from splitjax.adapters.nnx import flax_nnx, from_nnx
from splitjax.core.keys import fold
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree
from splitjax.models.dense import Dense


class Layer(nn.Module):
    """relu(norm(x @ kernel + bias)), then dropout; the head is linear.

    Example:
      >>> import jax.numpy as jnp
      >>> Layer(3).init(jax.random.key(0), jnp.ones((2, 4)), train=False)[
      ...     "params"]["dense"]["kernel"].shape
      (4, 3)
    """

    features: int
    dropout: float = 0.0
    norm: bool = False
    head: bool = False

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Maps x (B, I), or {"h": (B, I), "mask": (B,)}; the head gives the array."""
        h, mask = _open(x)
        h = Dense(self.features, name="dense")(h)
        if self.head:
            return h
        if self.norm:
            norm = nn.BatchNorm(use_running_average=not train, name="norm")
            h = norm(h, mask=None if mask is None else mask[:, None])
        h = nn.Dropout(self.dropout)(nn.relu(h), deterministic=not train)
        return _close(h, mask)


def mlp(
    features: Sequence[int], *, dropout: float = 0.0, norm: bool = False
) -> tuple[Stage, ...]:
    """A perceptron as Linen stages "dense_0", "dense_1", ..., "head".

    Parameters of a stage: `dense/kernel`, `dense/bias` and, with `norm`, `norm/scale`,
    `norm/bias`; its state then has `batch_stats/norm/mean` and `.../var`. Rows whose
    mask is False do not enter the statistics.

    Args:
      features: the widths of the layers; the last is the head's.
      dropout: the share of values dropped after each layer but the head.
      norm: whether layers are batch-normalized.

    Example:
      >>> [stage.name for stage in mlp([8, 8, 2])]
      ['dense_0', 'dense_1', 'head']
    """
    names = _names(features)
    return tuple(
        from_linen(Layer(width, dropout, norm, head=name == "head"), name)
        for name, width in zip(names, features, strict=True)
    )


def mlp_nnx(
    inputs: int,
    features: Sequence[int],
    *,
    key: jax.Array,
    dropout: float = 0.0,
    norm: bool = False,
) -> tuple[Stage, ...]:
    """The same perceptron as NNX stages: same paths, and same outputs in evaluation.

    Args:
      inputs: the width of the input, which NNX must know beforehand.
      features: as in `mlp`.
      key: for the parameters, drawn here and not in `init`.
      dropout: as in `mlp`; the random numbers differ.
      norm: as in `mlp`.

    Example:
      >>> [stage.name for stage in mlp_nnx(4, [8, 2], key=jax.random.key(0))]
      ['dense_0', 'head']
    """
    nnx = flax_nnx()

    class NnxLayer(nnx.Module):
        def __init__(self, inputs, width, head, rngs):
            self.head = head
            self.dense = nnx.Linear(inputs, width, rngs=rngs)
            if norm and not head:
                self.norm = nnx.BatchNorm(width, rngs=rngs)
            if not head:
                self.drop = nnx.Dropout(dropout, rngs=rngs)

        def __call__(self, x):
            h, mask = _open(x)
            h = self.dense(h)
            if self.head:
                return h
            if norm:
                h = self.norm(h, mask=None if mask is None else mask[:, None])
            return _close(self.drop(nnx.relu(h)), mask)

    stages = []
    for name, width in zip(_names(features), features, strict=True):
        rngs = nnx.Rngs(fold(key, name))
        stages.append(from_nnx(NnxLayer(inputs, width, name == "head", rngs), name))
        inputs = width
    return tuple(stages)


def _names(features: Sequence[int]) -> list[str]:
    if not features:
        raise ValueError("a perceptron needs at least one width, the head's: got none")
    return [f"dense_{i}" for i in range(len(features) - 1)] + ["head"]


def _open(x: Tree) -> tuple[jax.Array, jax.Array | None]:
    return (x["h"], x["mask"]) if isinstance(x, dict) else (x, None)


def _close(h: jax.Array, mask: jax.Array | None) -> Tree:
    return h if mask is None else {"h": h, "mask": mask}
