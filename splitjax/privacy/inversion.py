"""Inversion: what an attacker who knows some pairs makes of the messages it sees.

An attacker sees decoded messages. It knows pairs of its own (auxiliary data that it ran
through the edge's half, whose weights a cloud has often given itself), fits an inverse
to them, and is judged on pairs that it has not seen.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from splitjax.core.keys import fold

STRENGTHS = tuple(10.0**k for k in range(-8, 3))
HELD_OUT = 0.2  # of the known pairs, to choose by


@dataclasses.dataclass(frozen=True)
class Ridge:
    """A linear inverse: `x' = x_mean + (z - z_mean) @ weights`.

    Attributes:
      weights: (J, I) float64.
      z_mean: (J,) float64.
      x_mean: (I,) float64.
      strength: which of the strengths was chosen.
    """

    weights: np.ndarray
    z_mean: np.ndarray
    x_mean: np.ndarray
    strength: float

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """Reconstructs (N, I) float64 from messages (N, J)."""
        return self.x_mean + (_rows(z, "z") - self.z_mean) @ self.weights


def ridge_inversion(
    z: np.ndarray, x: np.ndarray, *, strengths: Sequence[float] = STRENGTHS
) -> Ridge:
    """The linear inverse that does best on pairs which it was not fit to.

    In closed form and in float64:

        weights = (Z'Z + r tr(Z'Z)/J I)^-1 Z'X

    with Z and X centered, through the eigenvectors of the smaller of Z'Z and ZZ'. The
    strength r is chosen on the last fifth of the pairs.

    Args:
      z: (N, ...) messages as they are decoded, 10 rows or more; one row for an example.
      x: (N, ...) what was to stay private.
      strengths: of the ridge, as shares of the mean eigenvalue.

    Raises:
      ValueError: for few or unlike numbers of rows, or values that are not finite.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> x = rng.normal(size=(50, 3))
      >>> z = x @ rng.normal(size=(3, 8))
      >>> bool(variance_left(x, ridge_inversion(z, x)(z)) < 1e-6)
      True
    """
    z, x = _pairs(z, x)
    known = len(z) - max(1, int(HELD_OUT * len(z)))
    z_mean, x_mean = z[:known].mean(0), x[:known].mean(0)
    zc, xc = z[:known] - z_mean, x[:known] - x_mean
    tall = zc.shape[0] >= zc.shape[1]
    values, vectors = np.linalg.eigh(zc.T @ zc if tall else zc @ zc.T)
    values = np.maximum(values, 0.0)
    scale = max(values.sum() / zc.shape[1], np.finfo(float).tiny)
    left = vectors.T @ (zc.T @ xc if tall else xc)
    best: tuple = (np.inf, None, None)
    for strength in strengths:
        # Of messages that hardly vary a small strength leaves no finite weights.
        with np.errstate(over="ignore", invalid="ignore"):
            inner = vectors @ (left / (values + strength * scale)[:, None])
            weights = inner if tall else zc.T @ inner
            guess = x_mean + (z[known:] - z_mean) @ weights
            error = float(np.square(x[known:] - guess).sum())
        if error < best[0]:
            best = error, weights, strength
    if best[1] is None:
        raise ValueError(f"no strength of {tuple(strengths)} gives a finite error")
    return Ridge(best[1], z_mean, x_mean, best[2])


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A trained inverse; see `decoder_inversion`.

    Attributes:
      params: of its layers.
      z_mean: (J,), and z_scale: what inputs are normed by.
      x_mean: (I,), and x_scale: likewise of outputs.
    """

    params: tuple
    z_mean: np.ndarray
    z_scale: np.ndarray
    x_mean: np.ndarray
    x_scale: float

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """Reconstructs (N, I) from messages (N, J)."""
        normed = (_rows(z, "z") - self.z_mean) / self.z_scale
        made = _network(self.params, jnp.asarray(normed, jnp.float32))
        return self.x_mean + self.x_scale * np.asarray(made, np.float64)


def decoder_inversion(
    z: np.ndarray,
    x: np.ndarray,
    *,
    key: jax.Array,
    width: int = 256,
    steps: int = 1500,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
) -> Decoder:
    """A small network that is trained to undo the edge's half, on known pairs.

    Two hidden layers with relu, mean squared error, Adam. Of ten states on the way the
    one that is best on the last fifth of the pairs is kept.

    Args:
      z: (N, ...) messages as they are decoded, 10 rows or more.
      x: (N, ...) what was to stay private.
      key: of weights and batches.
      width: of the hidden layers.
      steps: of the optimizer, 10 or more.
      batch_size: pairs in one step.
      learning_rate: Adam's.

    Raises:
      ValueError: for few or unlike numbers of rows, or values that are not finite.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> x = rng.normal(size=(400, 2))
      >>> z = np.tanh(x @ rng.normal(size=(2, 8)))
      >>> guess = decoder_inversion(z[:300], x[:300], key=jax.random.key(0), width=32,
      ...     steps=300, learning_rate=1e-2)
      >>> bool(variance_left(x[300:], guess(z[300:])) < 0.1)
      True
    """
    z, x = _pairs(z, x)
    known = len(z) - max(1, int(HELD_OUT * len(z)))
    z_mean, x_mean = z[:known].mean(0), x[:known].mean(0)
    z_scale = np.maximum(z[:known].std(0), 1e-3 * max(float(z[:known].std()), 1e-30))
    x_scale = max(float((x[:known] - x_mean).std()), 1e-30)
    inputs = jnp.asarray((z - z_mean) / z_scale, jnp.float32)
    outputs = jnp.asarray((x - x_mean) / x_scale, jnp.float32)
    sizes = (inputs.shape[1], width, width, outputs.shape[1])
    params = tuple(
        _layer(fold(key, "layer", i), sizes[i], sizes[i + 1]) for i in range(3)
    )
    tx = optax.adam(learning_rate)
    size = min(batch_size, known)

    def error(params, z, x):
        return jnp.mean(jnp.square(_network(params, z) - x))

    @jax.jit
    def several(params, opt, first, inputs, outputs):
        def one(carry, number):
            params, opt = carry
            rows = jax.random.randint(fold(key, "rows", number), (size,), 0, known)
            grads = jax.grad(error)(params, inputs[rows], outputs[rows])
            with jax.numpy_dtype_promotion("standard"):
                updates, opt = tx.update(grads, opt, params)
            return (optax.apply_updates(params, updates), opt), None

        (params, opt), _ = jax.lax.scan(
            one, (params, opt), first + jnp.arange(steps // 10)
        )
        return params, opt, error(params, inputs[known:], outputs[known:])

    opt, best = tx.init(params), (np.inf, params)
    for part in range(10):
        first = jnp.int32(part * (steps // 10))
        params, opt, held_out = several(params, opt, first, inputs, outputs)
        if float(held_out) < best[0]:
            best = float(held_out), params
    return Decoder(best[1], z_mean, z_scale, x_mean, x_scale)


def variance_left(x: np.ndarray, guess: np.ndarray) -> float:
    """The share of x's variance that a reconstruction leaves: 0 all seen, 1 nothing.

    The mean of x as the guess leaves 1; a worse guess leaves more.

    Args:
      x: (N, ...) the truth.
      guess: the same shape.

    Example:
      >>> x = np.array([[0.0], [2.0]])
      >>> variance_left(x, x), variance_left(x, 0 * x + 1)
      (0.0, 1.0)
    """
    x, guess = _rows(x, "x"), _rows(guess, "guess")
    total = np.square(x - x.mean(0)).sum()
    if total == 0:
        raise ValueError("all rows of x are equal: there is no variance to leave")
    return float(np.square(x - guess).sum() / total)


def _network(params, h):
    *hidden, last = params
    for kernel, bias in hidden:
        h = jax.nn.relu(h @ kernel + bias[None])
    return h @ last[0] + last[1][None]


def _layer(key, inputs, outputs):
    kernel = jax.random.normal(key, (inputs, outputs)) * (2 / inputs) ** 0.5
    return kernel, jnp.zeros(outputs)


def _rows(a, name) -> np.ndarray:
    a = np.asarray(a, np.float64)
    a = a.reshape(len(a), -1)
    if not np.isfinite(a).all():
        bad = int((~np.isfinite(a)).sum())
        raise ValueError(f"{name} holds {bad} values that are not finite")
    return a


def _pairs(z, x) -> tuple[np.ndarray, np.ndarray]:
    z, x = _rows(z, "z"), _rows(x, "x")
    if len(z) != len(x):
        raise ValueError(f"z has {len(z)} rows and x {len(x)}: give pairs")
    if len(z) < 10:
        raise ValueError(f"{len(z)} pairs are too few to learn from: give 10 or more")
    return z, x
