"""How like two images are: MSE, PSNR, SSIM."""

import jax
import jax.numpy as jnp


def mse(x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean of (x - y)^2 over all entries.

    Args:
      x: any shape, float.
      y: the same shape.

    Example:
      >>> import jax.numpy as jnp
      >>> float(mse(jnp.array([0.0, 2.0]), jnp.array([0.0, 0.0])))
      2.0
    """
    _same(x, y)
    return jnp.mean(jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32)))


def psnr(x: jax.Array, y: jax.Array, *, data_range: float = 1.0) -> jax.Array:
    """The peak signal-to-noise ratio `10 log10(range^2 / MSE)` in dB; inf where equal.

    Args:
      x: any shape, float.
      y: the same shape.
      data_range: the greatest possible value less the least one.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(psnr(jnp.zeros(2), jnp.full(2, 0.1))), 3)
      20.0
    """
    return 10 * jnp.log10(jnp.float32(data_range) ** 2 / mse(x, y))


def ssim(
    x: jax.Array, y: jax.Array, *, data_range: float = 1.0, window: int = 7
) -> jax.Array:
    """The structural similarity of images, from -1 to 1 (equal).

    With means m, variances v and covariance c in each window that lies inside,

        (2 m_x m_y + C1) (2 c + C2) / ((m_x^2 + m_y^2 + C1) (v_x + v_y + C2))

    and its mean over windows and channels; C1 = (.01 range)^2, C2 = (.03 range)^2.

    Args:
      x: (B, H, W, C) or (H, W, C) float.
      y: the same shape.
      data_range: the greatest possible value less the least one.
      window: the side of a window, at most H and W; all its pixels weigh the same.

    Returns:
      (B,) float32, or a scalar for one image.

    Raises:
      ValueError: for unlike shapes, another rank, or a window that does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.arange(64.0).reshape(8, 8, 1) / 64
      >>> round(float(ssim(x, x)), 4), bool(ssim(x, 1 - x) < 0)
      (1.0, True)

    Reference:
      Z. Wang, A. Bovik, H. Sheikh, E. Simoncelli, "Image quality assessment: from error
      visibility to structural similarity", 2004, eq. (13).

    Differs:
      A uniform window of 7 x 7 and sample (co)variances, over N - 1: the defaults of
      `skimage.metrics.structural_similarity`, with whose numbers it agrees.
    """
    _same(x, y)
    if x.ndim not in (3, 4):
        raise ValueError(f"ssim takes (B, H, W, C) or (H, W, C), not {x.shape}")
    if x.ndim == 3:
        return ssim(x[None], y[None], data_range=data_range, window=window)[0]
    if not 2 <= window <= min(x.shape[1:3]):
        raise ValueError(
            f"ssim(window={window}): images are {x.shape[1]} x {x.shape[2]}; a window "
            "has 2 pixels a side or more, and fits inside"
        )
    count = window * window
    # Moments about the middle of each image: differences of large squares lose digits.
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    middle = jnp.mean(x, (1, 2), keepdims=True)
    u, v = x - middle, y - middle

    def mean(a):
        sizes = (1, window, window, 1)
        zero = jnp.float32(0)
        total = jax.lax.reduce_window(a, zero, jax.lax.add, sizes, (1,) * 4, "VALID")
        return total / count

    mean_u, mean_v = mean(u), mean(v)
    scale = count / (count - 1)
    var_x = scale * (mean(u * u) - mean_u * mean_u)
    var_y = scale * (mean(v * v) - mean_v * mean_v)
    cov = scale * (mean(u * v) - mean_u * mean_v)
    mean_x, mean_y = mean_u + middle, mean_v + middle
    c1, c2 = (jnp.float32(k * data_range) ** 2 for k in (0.01, 0.03))
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return jnp.mean(light * (2 * cov + c2) / (var_x + var_y + c2), (1, 2, 3))


def _same(x: jax.Array, y: jax.Array) -> None:
    if x.shape != y.shape:
        raise ValueError(f"the images have unlike shapes: {x.shape} and {y.shape}")
