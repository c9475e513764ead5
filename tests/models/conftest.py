import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from splitjax.models.bert_config import BertConfig

SIZES = dict(vocab=50, width=16, heads=4, layers=2, ffn=24, positions=20)
CONFIGS = {
    "bert": BertConfig(**SIZES, init_std=0.2),
    "mpnet": BertConfig(
        **SIZES, family="mpnet", types=0, first_position=2, buckets=8, init_std=0.2
    ),
}


@pytest.fixture(params=list(CONFIGS))
def config(request) -> BertConfig:
    """A tiny model of each family."""
    return CONFIGS[request.param]


@pytest.fixture
def batch(key):
    """Rows of 7, 4, 1 and 0 tokens."""
    ids = jax.random.randint(key, (4, 7), 3, 50)
    lengths = jnp.array([7, 4, 1, 0])
    return {"ids": ids, "mask": jnp.arange(7)[None] < lengths[:, None]}


REFERENCE = pathlib.Path(__file__).parent / "reference"
# The maker of the references runs elsewhere, and reads its weights from there too.
_spec = importlib.util.spec_from_file_location("small", REFERENCE / "small.py")
assert _spec is not None and _spec.loader is not None
_small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_small)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """`reference(name)`: what the original computed, and the folder it read."""
    made = {}

    def one(name):
        if name not in made:
            with np.load(REFERENCE / f"{name}.npz") as file:
                arrays = dict(file)
            folder = tmp_path_factory.mktemp(name)
            (folder / "config.json").write_text(str(arrays.pop("config")))
            shapes = json.loads(str(arrays.pop("tensors")))
            tensors = {k: _small.weight(k, tuple(v)) for k, v in shapes.items()}
            path = folder / "model.safetensors"
            safetensors.numpy.save_file(tensors, path)
            made[name] = arrays, folder
        return made[name]

    return one
