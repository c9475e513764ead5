import jax
import jax.numpy as jnp
import pytest

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
