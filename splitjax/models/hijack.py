"""The networks of the feature-space hijacking attack, and the edge it is shown on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from splitjax.adapters.linen import from_linen
from splitjax.core.stage import Stage
from splitjax.models.batch_norm import BatchNorm
from splitjax.models.dense import Dense


class Net(nn.Module):
    """A module that is what a function of (module, x, train) makes of an input.

    Example:
      >>> net = Net(lambda module, x, train: 2 * x)
      >>> net.apply({}, jnp.ones(1), train=True).tolist()
      [2.0]
    """

    body: Callable[[nn.Module, jax.Array, bool], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Runs the function; the layers that it makes are this module's."""
        return self.body(self, x, train)


def hijack_edge(width: int = 64, level: int = 4, *, norm: bool = False) -> Stage:
    """The edge's half: a small ResNet from pictures (B, H, W, C) to a code.

    A convolution, norm, relu and 2x2 pool, then 1 (level 1), 2, 3 or 4 residual blocks
    of which the second and fourth halve the sides and double the width. At level 0 of
    this, the pilot and the decoder two dense layers on patches of 2x2 pixels stand
    instead, which a slow computer can train; the code is (B, H/2, W/2, width).

    Args:
      width: of the first convolution.
      level: how many residual blocks.
      norm: a norm at the end, which a sign behind it needs.

    Example:
      >>> hijack_edge(8, 2).name
      'edge'

    Reference: the authors' code of arXiv:2012.02670 ("resnet", set-up 4 is width 64,
    level 4: from 32x32 pixels to (4, 4, 256)).
    """

    def body(module, x, train):
        if level == 0:
            x = Dense(4 * width, name="hidden")(_patches(x))
            x = nn.relu(BatchNorm(name="norm")(x, None, train=train))
            x = Dense(width, name="code")(x)
            return BatchNorm(name="last")(x, None, train=train) if norm else x
        x = nn.relu(BatchNorm(name="norm")(_conv(width)(x), None, train=train))
        x = _block(nn.max_pool(x, (2, 2), (2, 2)), width)
        for number, (features, stride) in enumerate(
            ((2 * width, 2), (2 * width, 1), (4 * width, 2)), 2
        ):
            if level >= number:
                x = _block(x, features, stride)
        return BatchNorm(name="last")(x, None, train=train) if norm else x

    return from_linen(Net(_checked(body, level)), "edge")


def hijack_pilot(width: int = 64, level: int = 4) -> Stage:
    """The attacker's encoder: linear convolutions to a code of the edge's shape.

    Example:
      >>> hijack_pilot(8, 2).name
      'pilot'

    Reference: the authors' code of arXiv:2012.02670 ("pilot").
    """

    def body(module, x, train):
        if level == 0:
            x = nn.relu(Dense(4 * width, name="hidden")(_patches(x)))
            return Dense(width, name="code")(x)
        x = _conv(width, 2)(x)
        if level >= 2:
            x = _conv(2 * width, 2)(x)
        if level == 4:
            x = _conv(4 * width, 2)(x)
        return _conv(x.shape[-1])(x)

    return from_linen(Net(_checked(body, level)), "pilot")


def hijack_decoder(channels: int, width: int = 64, level: int = 4) -> Stage:
    """The attacker's decoder: transposed convolutions from a code to pictures in -1..1.

    Example:
      >>> hijack_decoder(1, 8, 2).name
      'decoder'

    Reference: the authors' code of arXiv:2012.02670 ("decoder").
    """

    def body(module, x, train):
        if level == 0:
            x = nn.relu(Dense(4 * width, name="hidden")(x))
            return jnp.tanh(_pixels(Dense(4 * channels, name="pixels")(x)))
        x = _up(4 * width)(x)
        if level >= 2:
            x = _up(2 * width)(x)
        return jnp.tanh(_up(channels)(x) if level == 4 else _conv(channels)(x))

    return from_linen(Net(_checked(body, level)), "decoder")


def hijack_critic(width: int = 64, blocks: int = 6, *, dense: bool = False) -> Stage:
    """The attacker's critic of codes: a convolution, residual blocks, one number.

    With `dense` its blocks are dense layers on the whole code.

    Example:
      >>> hijack_critic(8, 1).name
      'critic'

    Reference: the authors' code of arXiv:2012.02670 ("discriminator": six blocks of
    width 4 * 64; its branches for other levels overwrite each other, and this is what
    remains).
    """

    def body(module, x, train):
        if dense:
            x = x.reshape(x.shape[0], -1)
            for number in range(blocks):
                x = nn.relu(Dense(16 * width, name=f"dense_{number}")(x))
            return Dense(1, name="score")(x)
        x = _conv(4 * width)(x)
        for _ in range(blocks):
            x = _block(x, 4 * width)
        x = _conv(4 * width, 2)(x)
        return Dense(1, name="score")(x.reshape(x.shape[0], -1))

    return from_linen(Net(body), "critic")


def hijack_head(classes: int) -> Stage:
    """What an honest cloud trains instead: a linear classifier of codes.

    Example:
      >>> hijack_head(10).name
      'head'
    """

    def body(module, x, train):
        return Dense(classes, name="head")(nn.relu(x).reshape(x.shape[0], -1))

    return from_linen(Net(body), "head")


def _checked(body: Any, level: int) -> Any:
    if level not in (0, 1, 2, 3, 4):
        raise ValueError(f"level={level}: 1 to 4 residual blocks, or 0: dense layers")
    return body


def _patches(x: jax.Array) -> jax.Array:
    """(B, 2H, 2W, C) -> (B, H, W, 4C)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)


def _pixels(x: jax.Array) -> jax.Array:
    """Undoes `_patches`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, 2, 2, c // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)


def _conv(features: int, stride: int = 1) -> nn.Conv:
    return nn.Conv(features, (3, 3), (stride, stride), padding="SAME")


def _up(features: int) -> nn.ConvTranspose:
    return nn.ConvTranspose(features, (3, 3), (2, 2), padding="SAME")


def _block(x: jax.Array, features: int, stride: int = 1) -> jax.Array:
    y = _conv(features, stride)(nn.relu(x))
    y = _conv(features)(nn.relu(y))
    if stride > 1 or x.shape[-1] != features:
        x = _conv(features, stride)(x)
    return x + y
