import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.privacy import mse, psnr, ssim

quick = jax.jit(ssim, static_argnames=("data_range", "window"))

ROW, COLUMN = np.meshgrid(np.arange(12), np.arange(10), indexing="ij")
X = (np.sin(ROW * 0.7) + np.cos(COLUMN * 1.1)) / 4 + 0.5
Y = np.clip(X + 0.1 * np.sin(ROW * COLUMN), 0, 1)


def image(a):
    return jnp.asarray(a[..., None] if a.ndim == 2 else a, jnp.float32)


# scikit-image 0.26.0, structural_similarity and peak_signal_noise_ratio, in float64.
@pytest.mark.parametrize(
    "x, y, options, expected",
    [
        (X, Y, {}, 0.9605211088955744),
        (X, Y, dict(data_range=2.0, window=5), 0.9547665641292024),
        (X, 1 - X, {}, -0.957290004750481),
        (np.stack([X, Y, X * Y], -1), np.stack([Y, X, Y * Y], -1), {}, 0.9700308651),
    ],
    ids=["usual", "window 5", "inverted", "three channels"],
)
def test_ssim_is_scikit_images(x, y, options, expected):
    np.testing.assert_allclose(
        quick(image(x), image(y), **options), expected, rtol=1e-5
    )


def test_psnr_and_mse():
    np.testing.assert_allclose(psnr(image(X), image(Y)), 23.671879713386605, rtol=1e-6)
    np.testing.assert_allclose(
        mse(image(X), image(Y)), np.mean((X - Y) ** 2), rtol=1e-5
    )
    assert np.isinf(psnr(image(X), image(X)))


def test_a_batch_is_its_images_and_a_flat_one_is_defined():
    both = jnp.stack([image(X), image(Y)])
    found = quick(both, both[::-1])
    assert found.shape == (2,)
    np.testing.assert_allclose(found[0], quick(image(X), image(Y)), rtol=1e-6)
    flat = jnp.full((8, 8, 1), 200.0)
    assert abs(float(quick(flat, flat, data_range=255.0)) - 1) < 1e-6


def test_what_is_no_pair_of_images_is_refused():
    with pytest.raises(ValueError, match="unlike shapes"):
        ssim(image(X), image(Y)[:5])
    with pytest.raises(ValueError, match=r"12 x 10; a window"):
        ssim(image(X), image(Y), window=11)
    with pytest.raises(ValueError, match=r"\(B, H, W, C\)"):
        ssim(jnp.ones((8, 8)), jnp.ones((8, 8)))
