"""Residual networks for images (ResNet 18 to 110) as ordered stages."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from splitjax.adapters.linen import from_linen
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree, nearest
from splitjax.models.batch_norm import BatchNorm
from splitjax.models.convolution import Classifier, closed, conv, opened

STEMS = ("cifar", "imagenet")
SHORTCUTS = ("conv", "pad")


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes and constants of a ResNet.

    Attributes:
      blocks: of each of the layers, which halve the picture (but the first) and double
        the width.
      bottleneck: whether a block is 1x1, 3x3, 1x1 with four times the width at its end;
        otherwise 3x3, 3x3.
      width: of the first layer.
      stem: "imagenet": 7x7 of stride 2, then a pool of stride 2; "cifar": 3x3.
      shortcut: where the shape changes: "conv": a 1x1 convolution and a norm; "pad":
        every other place, and channels of zeros.
      bias: whether convolutions have one.
      stride_first: where a bottleneck halves: in its first 1x1 (as first published), or
        in the 3x3.
      eps: of the norms.
      momentum: of the norms.

    Example:
      >>> ResNetConfig(blocks=(1, 1)).width
      64
    """

    blocks: tuple[int, ...]
    bottleneck: bool = False
    width: int = 64
    stem: str = "cifar"
    shortcut: str = "conv"
    bias: bool = False
    stride_first: bool = False
    eps: float = 1e-5
    momentum: float = 0.9

    def __post_init__(self):
        """Checks the names."""
        if self.stem not in STEMS:
            raise ValueError(f"stem {self.stem!r}: {nearest(self.stem, STEMS)}")
        if self.shortcut not in SHORTCUTS:
            raise ValueError(
                f"shortcut {self.shortcut!r}: {nearest(self.shortcut, SHORTCUTS)}"
            )


SMALL = ResNetConfig((3, 3, 3), width=16, shortcut="pad")  # table 6, for CIFAR
CONFIGS = {
    "resnet20": SMALL,
    "resnet56": dataclasses.replace(SMALL, blocks=(9, 9, 9)),
    "resnet110": dataclasses.replace(SMALL, blocks=(18, 18, 18)),
    "resnet18": ResNetConfig((2, 2, 2, 2)),
    "resnet34": ResNetConfig((3, 4, 6, 3)),
    "resnet50": ResNetConfig((3, 4, 6, 3), bottleneck=True),
}
# As the pretrained archive "resnet50" has it; see `models.keras_resnet`.
KERAS = dataclasses.replace(
    CONFIGS["resnet50"], stem="imagenet", bias=True, stride_first=True, eps=1e-3
)


class Stem(nn.Module):
    """The first convolution, norm and relu; for "imagenet" a 3x3 pool of stride 2 too.

    Parameters: `conv/kernel`, maybe `conv/bias`, `norm`. State: the norm's.
    """

    config: ResNetConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Maps pictures (B, H, W, C) to (B, H/4, W/4, width), or (B, H, W, width)."""
        c, (h, mask) = self.config, opened(x)
        large = c.stem == "imagenet"
        size, stride = (7, 2) if large else (3, 1)
        layer = conv(
            c.width, size, "conv", stride=stride, bias=c.bias, dtype=self.dtype
        )
        norm = BatchNorm(c.eps, c.momentum, self.dtype, name="norm")
        h = nn.relu(norm(layer(h), mask, train=train))
        if large:
            h = nn.max_pool(h, (3, 3), (2, 2), ((1, 1), (1, 1)))
        return closed(x, h)


class Block(nn.Module):
    """relu(shortcut(h) + branch(h)), the branch of two or three convolutions.

    Parameters: `conv_i/kernel`, maybe `conv_i/bias`, `norm_i`; `skip_conv` and
    `skip_norm` where the shape changes by a convolution. State: that of the norms.
    """

    config: ResNetConfig
    width: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tree, *, train: bool) -> Tree:
        """Maps pictures to pictures of 1/stride of their size."""
        c, (h, mask) = self.config, opened(x)

        def normed(h, features, size, stride, number):
            name = f"conv_{number}" if number else "skip_conv"
            layer = conv(
                features, size, name, stride=stride, bias=c.bias, dtype=self.dtype
            )
            name = name.replace("conv", "norm")
            norm = BatchNorm(c.eps, c.momentum, self.dtype, name=name)
            return norm(layer(h), mask, train=train)

        out, y = self.width * (4 if c.bottleneck else 1), h
        first, middle = (1, self.stride) if not c.stride_first else (self.stride, 1)
        if c.bottleneck:
            y = nn.relu(normed(y, self.width, 1, first, 1))
            y = nn.relu(normed(y, self.width, 3, middle, 2))
            y = normed(y, out, 1, 1, 3)
        else:
            y = nn.relu(normed(y, self.width, 3, self.stride, 1))
            y = normed(y, out, 3, 1, 2)
        if self.stride > 1 or h.shape[-1] != out:
            if c.shortcut == "conv":
                h = normed(h, out, 1, self.stride, 0)
            else:
                h = h[:, :: self.stride, :: self.stride]
                h = jnp.pad(h, ((0, 0),) * 3 + ((0, out - h.shape[-1]),))
        return closed(x, nn.relu(y + h))


def resnet(
    config: ResNetConfig, classes: int, *, dtype: Any = jnp.float32
) -> tuple[Stage, ...]:
    """A ResNet, without the stage "pixels" that makes its input of pictures.

    Its stages are "stem", then "layer1/0", "layer1/1", and so on to the last layer, and
    "head"; a cut after "layer3" is after the last block of it. The input is {"h": (B,
    H, W, C), "mask": (B,)}, or the array alone; between stages goes the same.

    Args:
      config: sizes and constants; see `CONFIGS`.
      classes: of the head, a linear layer on the mean over places.
      dtype: what convolutions compute in; parameters, norms and head are float32.

    Example:
      >>> [stage.name for stage in resnet(ResNetConfig((1, 2)), 10)]
      ['stem', 'layer1/0', 'layer2/0', 'layer2/1', 'head']

    Reference:
      He et al., Deep Residual Learning for Image Recognition, 2015 (arXiv:1512.03385),
      tables 1 and 6.

    Differs: the stride of a bottleneck is in its 3x3 unless `stride_first`; the stem
      "cifar" keeps the widths of ImageNet's networks.
    """
    stages = [from_linen(Stem(config, dtype), "stem")]
    for layer, count in enumerate(config.blocks):
        for number in range(count):
            stride = 2 if layer and not number else 1
            block = Block(config, config.width * 2**layer, stride, dtype)
            stages.append(from_linen(block, f"layer{layer + 1}/{number}"))
    return (*stages, from_linen(Classifier(classes), "head"))
