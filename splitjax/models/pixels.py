"""The first stage of an image model: pictures as stored, to what the model reads."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from splitjax.core.keys import fold
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree


def pixels(
    mean: Sequence[float],
    deviation: Sequence[float],
    *,
    flip: bool = False,
    pad: int = 0,
    size: int = 0,
    reverse: bool = False,
) -> Stage:
    """The stage "pixels": {"image": (B, H, W, C) uint8, "mask"} -> {"h", "mask"}.

    h = (image - mean) / deviation, float32. In training each picture may be mirrored
    and shifted, by random numbers of the tick's key alone: a replay sees the same ones.
    Rows whose mask is False become zeros. It has no parameters, and always lies on the
    edge: what it draws never crosses.

    Args:
      mean: of each channel, of values from 0 to 255, in the order that the model reads.
      deviation: likewise.
      flip: whether half of the pictures are mirrored left to right.
      pad: pixels by which a picture moves at most, each way; what comes in at its
        border is the mean, which is zero to the model.
      size: height and width to scale to (bilinear); 0: as they are.
      reverse: whether the channels are read from the last to the first (BGR).

    Raises:
      ValueError: for a deviation that is not above 0, lists of unlike lengths, or, on
        use, pictures of another dtype, rank or number of channels.

    Example:
      >>> stage = pixels([0.0], [255.0])
      >>> x = {"image": jnp.full((2, 1, 1, 1), 255, jnp.uint8),
      ...     "mask": jnp.array([True, False])}
      >>> stage.apply({}, {}, x, key=None, train=False)[0]["h"].ravel().tolist()
      [1.0, 0.0]
    """
    mean, deviation = tuple(mean), tuple(deviation)
    if len(mean) != len(deviation) or not mean or min(deviation) <= 0:
        raise ValueError(
            f"mean={mean}, deviation={deviation}: one of each for every channel, the "
            "deviations above 0"
        )
    if pad < 0 or size < 0:
        raise ValueError(f"pad={pad}, size={size}: 0 or more pixels")

    def apply(params, state, x, *, key, train):
        image, mask = _checked(x, len(mean))
        h = image[..., ::-1] if reverse else image
        shape = (1, 1, 1, len(mean))
        h = h.astype(jnp.float32) - jnp.array(mean, jnp.float32).reshape(shape)
        h = h / jnp.array(deviation, jnp.float32).reshape(shape)
        if train and (flip or pad) and key is None:
            raise ValueError("pictures are moved by chance: training needs a key")
        if train and flip:
            turned = jax.random.bernoulli(fold(key, "flip"), shape=(len(h), 1, 1, 1))
            h = jnp.where(turned, h[:, :, ::-1], h)
        if train and pad:
            h = _shifted(h, pad, fold(key, "shift"))
        if size:
            shape = (len(h), size, size, h.shape[-1])
            h = jax.image.resize(h, shape, "bilinear", antialias=False)
        return (
            {"h": jnp.where(mask[:, None, None, None], h, 0), "mask": mask},
            state,
            {},
        )

    return Stage("pixels", lambda key, spec: ({}, {}), apply, tags=frozenset({"edge"}))


def _shifted(h: jax.Array, pad: int, key: jax.Array) -> jax.Array:
    around = jnp.pad(h, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    places = jax.random.randint(key, (len(h), 2), 0, 2 * pad + 1)

    def one(picture, place):
        return jax.lax.dynamic_slice(picture, (*place, 0), h.shape[1:])

    return jax.vmap(one)(around, places)


def _checked(x: Tree, channels: int) -> tuple[jax.Array, jax.Array]:
    if not isinstance(x, dict) or set(x) != {"image", "mask"}:
        found = sorted(x) if isinstance(x, dict) else type(x).__name__
        raise ValueError(f"an image model reads a dict of image and mask: {found}")
    image, mask = x["image"], x["mask"]
    if image.dtype != jnp.uint8 or image.ndim != 4 or image.shape[-1] != channels:
        raise ValueError(
            f"pictures are uint8 (B, H, W, {channels}): {image.dtype} {image.shape}"
        )
    if mask.shape != image.shape[:1] or mask.dtype != jnp.bool_:
        raise ValueError(
            f"the mask of {len(image)} pictures is bool ({len(image)},): "
            f"{mask.dtype} {mask.shape}"
        )
    return image, mask
