"""A small convolutional network, which learns in minutes on a CPU."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from splitjax.adapters.linen import from_linen
from splitjax.core.stage import Stage
from splitjax.models.convolution import Classifier
from splitjax.models.vgg import vgg


def cnn(
    classes: int,
    *,
    widths: Sequence[int] = (32, 64),
    norm: bool = False,
    hidden: int = 128,
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
) -> tuple[Stage, ...]:
    """A 3x3 convolution, a relu and a 2x2 pool for each width; then a hidden layer.

    Its stages are "block1/0", "block1/pool", and so on, then "head". At 28x28 pixels
    (14, 14, 32) values leave block1 and (7, 7, 64) leave block2.

    Args:
      classes: of the head.
      widths: of the convolutions.
      norm: whether they are batch-normalized.
      hidden: width of the head's layer.
      dropout: after it.
      dtype: what convolutions compute in; parameters, norms and head are float32.

    Example:
      >>> [stage.name for stage in cnn(10)]
      ['block1/0', 'block1/pool', 'block2/0', 'block2/pool', 'head']
    """
    blocks = [(width, 1) for width in widths]
    body = vgg(classes, blocks=blocks, norm=norm, dtype=dtype)[:-1]
    head = Classifier(classes, "flat", (hidden,), dropout)
    return (*body, from_linen(head, "head"))
