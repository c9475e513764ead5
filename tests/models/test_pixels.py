import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.models.pixels import pixels

SHAPE = (5, 6, 8, 3)
PLAIN = dict(mean=[0.0] * 3, deviation=[1.0] * 3)


def pictures(rows=5):
    image = np.random.default_rng(0).integers(1, 256, SHAPE, np.uint8)
    return {"image": jnp.asarray(image), "mask": jnp.arange(5) < rows}


def run(x, key=None, train=False, **options):
    stage = pixels(**{**PLAIN, **options})
    return np.asarray(stage.apply({}, {}, x, key=key, train=train)[0]["h"])


@pytest.mark.parametrize("reverse", [False, True])
def test_channels_are_normed_in_the_order_that_is_read(reverse):
    x, mean, deviation = pictures(3), [10.0, 20.0, 30.0], [1.0, 2.0, 3.0]
    h = run(x, mean=mean, deviation=deviation, reverse=reverse)
    image = np.asarray(x["image"], np.float64)
    image = image[..., ::-1] if reverse else image
    wanted = (image - mean) / deviation
    np.testing.assert_allclose(h[:3], wanted[:3], rtol=1e-6)
    assert not h[3:].any()


def test_in_training_pictures_are_mirrored_and_moved_by_the_key_alone(key):
    x = pictures()
    image = np.asarray(x["image"], np.float32)
    flipped = run(x, key, True, flip=True)
    turned = [
        bool((h == i[:, ::-1]).all()) for h, i in zip(flipped, image, strict=True)
    ]
    same = [bool((h == i).all()) for h, i in zip(flipped, image, strict=True)]
    assert all(a != b for a, b in zip(turned, same, strict=True))
    assert any(turned) and any(same)
    moved = run(x, key, True, pad=2)
    around = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)))
    places = set()
    for row in range(5):
        windows = {
            (i, j): around[row, i : i + 6, j : j + 8]
            for i in range(5)
            for j in range(5)
        }
        [place] = [k for k, window in windows.items() if (window == moved[row]).all()]
        places.add(place)
    assert len(places) > 1
    both = dict(flip=True, pad=2)
    assert np.array_equal(run(x, key, True, **both), run(x, key, True, **both))
    other = run(x, jax.random.key(1), True, **both)
    assert not np.array_equal(run(x, key, True, **both), other)
    assert np.array_equal(run(x, key, False, **both), image)


def test_pictures_are_scaled():
    x = {"image": jnp.full((1, 2, 2, 3), 7, jnp.uint8), "mask": jnp.array([True])}
    assert np.array_equal(run(x, size=5), np.full((1, 5, 5, 3), 7.0))


def test_what_makes_no_sense_is_told(key):
    x = pictures()
    for options, message in (
        (dict(deviation=[1.0, 0.0, 1.0]), "above 0"),
        (dict(deviation=[1.0]), "for every channel"),
        (dict(pad=-1), "pad=-1"),
        (
            dict(mean=[0.0], deviation=[1.0]),
            r"uint8 \(B, H, W, 1\): uint8 \(5, 6, 8, 3",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(x, **options)
    with pytest.raises(ValueError, match="float32"):
        run({**x, "image": x["image"].astype(jnp.float32)})
    with pytest.raises(ValueError, match=r"bool \(5,\): bool \(4,\)"):
        run({**x, "mask": x["mask"][:4]})
    with pytest.raises(ValueError, match=r"image and mask: \['ids'\]"):
        run({"ids": x["image"]})
    with pytest.raises(ValueError, match="needs a key"):
        run(x, None, True, flip=True)
