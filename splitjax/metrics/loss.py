"""Losses: means over the valid rows of a batch."""

import jax
import jax.numpy as jnp
import optax


def valid_rows(target: dict, rows: int) -> jax.Array:
    """Which rows of a batch are examples: the first `target["n_valid"]`.

    Example:
      >>> import jax.numpy as jnp
      >>> valid_rows({"n_valid": jnp.int32(2)}, 3).tolist()
      [1.0, 1.0, 0.0]
    """
    return (jnp.arange(rows) < target["n_valid"]).astype(jnp.float32)


def _mean(values: jax.Array, target: dict) -> jax.Array:
    valid = valid_rows(target, values.shape[0])
    return (values * valid).sum() / jnp.maximum(valid.sum(), 1)


def squared_error(y: jax.Array, target: dict) -> tuple[jax.Array, dict]:
    """The mean squared error of the valid rows.

    Args:
      y: (B,) predictions.
      target: `{"y": (B,) float, "n_valid": int32}`.

    Returns:
      A float32 scalar, and no metrics.

    Example:
      >>> import jax.numpy as jnp
      >>> target = {"y": jnp.array([1.0, 9.0]), "n_valid": jnp.int32(1)}
      >>> float(squared_error(jnp.array([3.0, 0.0]), target)[0])
      4.0
    """
    wanted = target["y"].astype(jnp.float32)
    return _mean(jnp.square(y.astype(jnp.float32) - wanted), target), {}


def cross_entropy(y: jax.Array, target: dict) -> tuple[jax.Array, dict]:
    """The mean softmax cross entropy of the valid rows.

    Args:
      y: (B, C) logits.
      target: `{"y": (B,) integer classes, "n_valid": int32}`.

    Returns:
      A float32 scalar in nats, and the accuracy.

    Example:
      >>> import jax.numpy as jnp
      >>> target = {"y": jnp.array([0]), "n_valid": jnp.int32(1)}
      >>> round(float(cross_entropy(jnp.zeros((1, 2)), target)[0]), 3)
      0.693
    """
    logits, classes = y.astype(jnp.float32), target["y"].astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    right = (logits.argmax(-1) == classes).astype(jnp.float32)
    return _mean(losses, target), {"accuracy": _mean(right, target)}
