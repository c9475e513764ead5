"""One model for several tasks: each reads logits of its own, its group."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from splitjax.core.split import Loss
from splitjax.metrics.loss import cross_entropy


def grouped_cross_entropy(groups: int) -> Loss:
    """The cross entropy of each example within the logits of its own task.

    A label is `task * C + class`, with C the logits of a task: the label says which
    task an example is of, and the logits of the others stay out of the softmax.

    Args:
      groups: how many tasks; it divides the number of logits.

    Returns:
      `(y (B, groups * C), target) -> (loss, metrics)` as `cross_entropy`.

    Example:
      >>> target = {"y": jnp.array([3]), "n_valid": jnp.int32(1)}
      >>> loss, _ = grouped_cross_entropy(2)(jnp.array([[9.0, 9.0, 0.0, 0.0]]), target)
      >>> round(float(loss), 3)
      0.693
    """

    def loss(y, target):
        logits = y.reshape(y.shape[0], groups, -1)
        label = target["y"].astype(jnp.int32)
        group, own = jnp.divmod(label, logits.shape[-1])
        picked = jnp.take_along_axis(logits, group[:, None, None], axis=1)[:, 0]
        return cross_entropy(picked, {**target, "y": own})

    return loss


def grouped_accuracy(groups: int) -> Callable[[np.ndarray, np.ndarray], float]:
    """The mean over the tasks that occur of the accuracy within a task's logits.

    Args:
      groups: as in `grouped_cross_entropy`.

    Example:
      >>> score = grouped_accuracy(2)
      >>> logits = np.array([[1, 0, 9, 0], [1, 0, 9, 0], [1, 0, 9, 0]])
      >>> score(logits, np.array([0, 2, 3]))
      0.75
    """

    def score(predicted, wanted):
        logits = predicted.reshape(len(predicted), groups, -1)
        group, own = np.divmod(wanted, logits.shape[-1])
        right = logits[np.arange(len(logits)), group].argmax(-1) == own
        return float(np.mean([right[group == g].mean() for g in np.unique(group)]))

    return score
