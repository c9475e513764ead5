"""Makes resnet50.npz beside this file from the archive's own definition.

It walks the layers of model.json with NumPy alone, in float64, and shares no code with
splitjax; FOLDER is where `python -m splitjax.data.fetch resnet50` put the archive:

    python tests/models/reference/make_resnet.py FOLDER
"""

import json
import math
import pathlib
import sys

import numpy as np

MEAN = np.array([103.939, 116.779, 123.68])  # blue, green, red


def weights(folder: pathlib.Path, manifest: list) -> dict[str, np.ndarray]:
    """All arrays by name: the shards of a group are one stream of bytes."""
    found = {}
    for group in manifest:
        stream = b"".join((folder / path).read_bytes() for path in group["paths"])
        place = 0
        for entry in group["weights"]:
            assert entry["dtype"] == "float32" and "quantization" not in entry
            count = math.prod(entry["shape"])
            array = np.frombuffer(stream, "<f4", count, place)
            found[entry["name"]] = array.reshape(entry["shape"]).astype(np.float64)
            place += 4 * count
        assert place == len(stream)
    return found


def windows(x: np.ndarray, size: list, strides: list) -> np.ndarray:
    """(B, H, W, C, size, size): what each place of the output sees."""
    seen = np.lib.stride_tricks.sliding_window_view(x, size, (1, 2))
    return seen[:, :: strides[0], :: strides[1]]


def run(layer: dict, inputs: list[np.ndarray], w: dict[str, np.ndarray]) -> np.ndarray:
    """The output of one layer, as its Keras config says."""
    kind, c, x = layer["class_name"], layer["config"], inputs[0]
    name = c["name"]
    if kind == "ZeroPadding2D":
        return np.pad(x, ((0, 0), *c["padding"], (0, 0)))
    if kind == "Conv2D":
        size, strides = c["kernel_size"], c["strides"]
        assert c["dilation_rate"] == [1, 1] and c["activation"] == "linear"
        if c["padding"] == "same":
            assert strides == [1, 1] and size[0] % 2 and size[1] % 2
            x = np.pad(x, ((0, 0), *((s // 2, s // 2) for s in size), (0, 0)))
        y = np.einsum(
            "bhwcij,ijcd->bhwd",
            windows(x, size, strides),
            w[f"{name}/kernel"],
            optimize=True,
        )
        return y + w[f"{name}/bias"] if c["use_bias"] else y
    if kind == "BatchNormalization":
        mean, var = w[f"{name}/moving_mean"], w[f"{name}/moving_variance"]
        y = (x - mean) / np.sqrt(var + c["epsilon"])
        return y * w[f"{name}/gamma"] + w[f"{name}/beta"]
    if kind == "Activation":
        assert c["activation"] == "relu"
        return np.maximum(x, 0)
    if kind == "MaxPooling2D":
        assert c["padding"] == "valid"
        return windows(x, c["pool_size"], c["strides"]).max((-2, -1))
    if kind == "Add":
        return sum(inputs[1:], inputs[0])
    if kind == "GlobalAveragePooling2D":
        return x.mean((1, 2))
    if kind == "Dense":
        assert c["activation"] == "softmax"  # the logits are what goes into it
        return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]
    raise NotImplementedError(kind)


def pictures() -> np.ndarray:
    """Two pictures (2, 72, 64, 3), RGB: waves, and noise over a ramp."""
    i, j = np.mgrid[:72, :64]
    waves = [127 + 120 * np.sin(i / a + j / b) for a, b in ((5, 9), (11, 4), (3, 17))]
    random = np.random.default_rng(0).integers(-60, 60, (72, 64, 3))
    ramp = (2 * i + j)[..., None] % 256 + random
    return np.clip(np.stack([np.stack(waves, -1), ramp]), 0, 255).astype(np.uint8)


def main(folder: str) -> None:
    """Writes the pictures, what leaves each of Keras's five stages, and the logits."""
    model = json.loads(pathlib.Path(folder, "model.json").read_text())
    w = weights(pathlib.Path(folder), model["weightsManifest"])
    image, out = pictures(), {}
    for layer in model["modelTopology"]["model_config"]["config"]["layers"]:
        if layer["class_name"] == "InputLayer":
            y = image[..., ::-1].astype(np.float64) - MEAN
        else:
            [nodes] = layer["inbound_nodes"]
            y = run(layer, [out[node[0]] for node in nodes], w)
        out[layer["config"]["name"]] = y
    last = list(out)
    places = {"stem": "max_pooling2d", "logits": last[-1]}
    # The relu after the last sum of each stage.
    for layer, number in (("layer1", 3), ("layer2", 7), ("layer3", 13), ("layer4", 16)):
        sums = [name for name in last if name.startswith("add")]
        places[layer] = last[last.index(sums[number - 1]) + 1]
    arrays = {
        name: out[theirs].reshape(2, -1)[:, :1000].astype(np.float32)
        for name, theirs in places.items()
    }
    here = pathlib.Path(__file__).parent
    np.savez_compressed(here / "resnet50.npz", image=image, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
