"""VGG-16 as ordered stages."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from splitjax.adapters.linen import from_linen
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree
from splitjax.models.batch_norm import BatchNorm
from splitjax.models.convolution import Classifier, closed, conv, opened

VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class Layer(nn.Module):
    """relu(norm(conv(h))) with a 3x3 convolution; the norm where there is one.

    Parameters: `conv/kernel`, `conv/bias` and, with `norm`, `norm`. State: the norm's.
    """

    features: int
    norm: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Maps pictures (B, H, W, C) to (B, H, W, features)."""
        h, mask = opened(x)
        h = conv(self.features, 3, "conv", dtype=self.dtype)(h)
        if self.norm:
            h = BatchNorm(dtype=self.dtype, name="norm")(h, mask, train=train)
        return closed(x, nn.relu(h))


def vgg(
    classes: int,
    *,
    blocks: Sequence[tuple[int, int]] = VGG16,
    norm: bool = True,
    hidden: Sequence[int] = (512,),
    dropout: float = 0.5,
    dtype: Any = jnp.float32,
) -> tuple[Stage, ...]:
    """A VGG network, VGG-16 by default, without the stage "pixels".

    Its stages are "block1/0", "block1/1", "block1/pool", and so on, then "head". A cut
    after "block4" is after its pool.

    Args:
      classes: of the head.
      blocks: width and number of convolutions of each block.
      norm: whether convolutions are batch-normalized.
      hidden: widths of the head's layers; ImageNet's own are (4096, 4096).
      dropout: after each of them.
      dtype: what convolutions compute in; parameters, norms and head are float32.

    Example:
      >>> [stage.name for stage in vgg(10, blocks=((8, 1), (16, 2)))]
      ['block1/0', 'block1/pool', 'block2/0', 'block2/1', 'block2/pool', 'head']

    Reference:
      Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image
      Recognition, 2014 (arXiv:1409.1556), table 1, configuration D.

    Differs: the norms, and the head's widths for small pictures, are not in the paper.
    """
    stages = []
    for number, (width, count) in enumerate(blocks, 1):
        for index in range(count):
            layer = Layer(width, norm, dtype)
            stages.append(from_linen(layer, f"block{number}/{index}"))
        stages.append(_pool(f"block{number}/pool"))
    head = Classifier(classes, "flat", tuple(hidden), dropout)
    return (*stages, from_linen(head, "head"))


def _pool(name: str) -> Stage:
    def apply(params, state, x, *, key, train):
        h, _ = opened(x)
        if min(h.shape[1:3]) < 2:
            raise ValueError(
                f"{name}: pictures of {h.shape[1]} x {h.shape[2]} pixels cannot be "
                "halved: give larger ones (`pixels(size=...)`)"
            )
        return closed(x, nn.max_pool(h, (2, 2), (2, 2))), state, {}

    return Stage(name, lambda key, spec: ({}, {}), apply)
