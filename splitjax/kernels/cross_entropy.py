"""Softmax cross entropy with label smoothing, its gradient in closed form."""

import functools

import jax
import jax.numpy as jnp

from splitjax.kernels.kernel import Kernel
from splitjax.kernels.tile import Tile


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    smoothing: float = 0.0,
    pad: int | None = None,
    impl: str = "auto",
) -> jax.Array:
    """The loss of each token, label smoothing included.

    With e = smoothing / (V - 1), w = 1 - smoothing - e and p = softmax(logits):

        loss = -w log p[label] - e sum_k log p[k]
        d loss / d logits[k] = p[k] - e - w [k = label]

    so that a wrong class has a weight of e, and the right one of 1 - smoothing. The
    backward pass has the logits and a logarithm of a sum for each row, no
    probabilities. Sums are float32.

    Args:
      logits: (..., V), of any float dtype.
      labels: (...), of any integer dtype; read as int32.
      smoothing: from 0 to less than 1. optax's `smooth_labels` spreads its alpha over
        all classes, the right one too: alpha = smoothing V / (V - 1).
      pad: a label whose rows have a loss of 0 and no gradient; they may be all. Take
        their mean by `token_mean`.
      impl: see `kernel.Kernel`.

    Returns:
      float32 (...) in nats. A label that is no class, and not `pad`, gives NaN, in the
      gradient too. A logit of -inf beside a smoothing gives infinity.

    Raises:
      ValueError: for logits that are no floats, shapes that do not fit, a smoothing out
        of range, or one of a single class.

    Example:
      >>> loss = cross_entropy(jnp.zeros((2, 4)), jnp.array([3, -1]), pad=-1)
      >>> loss.round(3).tolist()
      [1.3860000371932983, 0.0]

    Reference:
      Wang et al., LightSeq2, 2022 (arXiv:2110.05722), on the criterion; C. Szegedy et
      al., Rethinking the Inception Architecture for Computer Vision, 2015
      (arXiv:1512.00567), section 7.

    Differs:
      The gradient's formula is LightSeq's, simplified. A row is parted among programs
      where it is long; so the logits need not fit one.
    """
    check_smoothing(logits.shape[-1], smoothing)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"cross_entropy needs logits of floats: {logits.dtype}")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels are {logits.shape[:-1]}, as logits {logits.shape} without their "
            f"classes: {labels.shape}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels are classes, of integers: {labels.dtype}")
    labels, real = _classes(labels, pad)
    return _loss(logits, labels, real, float(smoothing), impl)


def token_mean(
    losses: jax.Array, labels: jax.Array, *, pad: int | None = None
) -> jax.Array:
    """The mean over the tokens that are not `pad`; of none it is 0.

    Example:
      >>> float(token_mean(jnp.array([2.0, 0.0]), jnp.array([5, -1]), pad=-1))
      2.0
      >>> float(token_mean(jnp.zeros(2), jnp.array([-1, -1]), pad=-1))
      0.0
    """
    _, real = _classes(labels, pad)
    return losses.sum() / jnp.maximum(real.sum(dtype=jnp.float32), 1)


def check_smoothing(classes: int, smoothing: float) -> None:
    """Raises a ValueError for a smoothing that cannot be.

    Example:
      >>> check_smoothing(1, 0.1)
      Traceback (most recent call last):
      ...
      ValueError: smoothing=0.1 of a single class: there is no other to share it
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing={smoothing}: from 0 to less than 1")
    if classes == 1 and smoothing:
        raise ValueError(
            f"smoothing={smoothing} of a single class: there is no other to share it"
        )


def weights(classes: int, smoothing: float) -> tuple[float, float]:
    """(e, w): what every class gets, and what the right one gets besides.

    Example:
      >>> weights(5, 0.2)
      (0.05, 0.75)
    """
    e = smoothing / (classes - 1) if smoothing else 0.0
    return e, 1 - smoothing - e


def _classes(labels, pad):
    """Labels as (...,) int32, and which of them are no padding."""
    labels = labels.astype(jnp.int32)  # first: no unsigned one equals a pad of -1
    real = jnp.ones(labels.shape, bool) if pad is None else labels != pad
    return labels, real


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _loss(logits, labels, real, smoothing, impl):
    return _loss_fwd(logits, labels, real, smoothing, impl)[0]


def _loss_fwd(logits, labels, real, smoothing, impl):
    parts = _STATISTICS(logits, labels[..., None], dtypes=(jnp.float32,) * 4, impl=impl)
    top, exps, total, right = parts
    m = top.max(-1)
    m = jnp.where(jnp.isfinite(m), m, 0.0)  # of a row of -inf alone
    lse = m + jnp.log((exps * jnp.exp(top - m[..., None])).sum(-1))
    classes = logits.shape[-1]
    lse = jnp.where((labels >= 0) & (labels < classes), lse, jnp.nan)
    e, w = weights(classes, smoothing)
    loss = w * (lse - right.sum(-1))
    if e:
        loss = loss + e * (classes * lse - total.sum(-1))
    return jnp.where(real, loss, 0.0), (logits, labels, real, lse)


def _loss_bwd(smoothing, impl, residuals, dy):
    logits, labels, real, lse = residuals
    e, w = weights(logits.shape[-1], smoothing)
    dy = jnp.where(real, dy, 0.0)
    arrays = (logits, labels[..., None], lse[..., None], dy[..., None])
    (made,) = _GRADIENT(*arrays, dtypes=(logits.dtype,), impl=impl, e=e, w=w)
    return made, None, None


_loss.defvjp(_loss_fwd, _loss_bwd)


def _statistics(tile: Tile, logits, labels):
    x = logits.astype(jnp.float32)
    top = tile.max_columns(x)
    shift = jnp.where(jnp.isfinite(top), top, 0.0)
    exps = tile.sum_columns(jnp.exp(x - shift))
    right = tile.sum_columns(jnp.where(tile.columns() == labels, x, 0.0))
    return top, exps, tile.sum_columns(x), right


def _gradient(tile: Tile, logits, labels, lse, dy, *, e, w):
    p = jnp.exp(logits.astype(jnp.float32) - lse)
    hit = jnp.where(tile.columns() == labels, w, 0.0)
    # Padding gets zeros, whatever its logits and its label are.
    return (jnp.where(dy == 0, 0.0, dy * (p - e - hit)),)


_STATISTICS = Kernel(
    "cross_entropy", _statistics, ("each", "row"), ("row",) * 4, parted=True
)
_GRADIENT = Kernel(
    "cross_entropy_gradient",
    _gradient,
    ("each", "row", "row", "row"),
    ("each",),
    parted=True,
)
