"""How well a language model predicts the next symbol."""

import math

import jax
import jax.numpy as jnp
import optax

from splitjax.metrics.loss import valid_rows


def row_nats(y: jax.Array, following: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The negative log-likelihood of the symbols that follow, summed in each row.

    Args:
      y: (B, T, V) logits.
      following: (B, T) integer symbols; below 0 where none follows.

    Returns:
      (B,) float32 nats, and (B,) int32, how many symbols they are of.

    Example:
      >>> made, counts = row_nats(jnp.zeros((1, 2, 4)), jnp.array([[3, -1]]))
      >>> round(float(made[0]), 4), counts.tolist()
      (1.3863, [1])
    """
    there = following >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(
        y.astype(jnp.float32), jnp.maximum(following, 0).astype(jnp.int32)
    )
    return jnp.where(there, losses, 0).sum(1), there.sum(1, dtype=jnp.int32)


def nats(y: jax.Array, following: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sums of `row_nats` over all rows: float32 nats, and an int32 count.

    Example:
      >>> total, count = nats(jnp.zeros((1, 2, 4)), jnp.array([[3, -1]]))
      >>> round(float(total), 4), int(count)
      (1.3863, 1)
    """
    rows, counts = row_nats(y, following)
    return rows.sum(), counts.sum(dtype=jnp.int32)


def perplexity(total: float, count: int) -> float:
    """exp(nats of one symbol); the inverse of their geometric mean probability.

    Args:
      total: nats of all symbols.
      count: how many symbols.

    Raises:
      ValueError: when nothing was predicted.

    Example:
      >>> round(perplexity(2 * math.log(5.0), 2), 6)
      5.0
    """
    if count < 1:
        raise ValueError(f"a perplexity of {count} symbols: nothing was predicted")
    return math.exp(total / count)


def bits(total: float, count: int) -> float:
    """Bits of one symbol: log2 of the perplexity. On bytes enwik8 is scored by it.

    Raises:
      ValueError: when nothing was predicted.

    Example:
      >>> round(bits(3 * math.log(2.0), 3), 6)
      1.0
    """
    return math.log2(perplexity(total, count))


def next_symbol(y: jax.Array, target: dict) -> tuple[jax.Array, dict]:
    """A loss: the mean over valid rows of the mean nats of each row's symbols.

    With windows of one length it is the mean over all symbols, and micro-batches add up
    to the batch.

    Args:
      y: (B, T, V) logits.
      target: `{"y": (B, T) integer symbols, below 0 where none follows, "n_valid"}`.

    Returns:
      A float32 scalar, and the accuracy.

    Example:
      >>> target = {"y": jnp.array([[3, -1], [0, 0]]), "n_valid": jnp.int32(1)}
      >>> round(float(next_symbol(jnp.zeros((2, 2, 4)), target)[0]), 4)
      1.3863
    """
    valid = valid_rows(target, y.shape[0])
    following = target["y"]
    there = (following >= 0).astype(jnp.float32)
    share = there / jnp.maximum(there.sum(1, keepdims=True), 1)
    share = share * valid[:, None] / jnp.maximum(valid.sum(), 1)
    losses = optax.softmax_cross_entropy_with_integer_labels(
        y.astype(jnp.float32), jnp.maximum(following, 0).astype(jnp.int32)
    )
    right = (y.argmax(-1) == following).astype(jnp.float32)
    return (losses * share).sum(), {"accuracy": (right * share).sum()}
