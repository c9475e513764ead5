import jax
import jax.numpy as jnp
import pytest

from splitjax.bench import kernels
from splitjax.models.bert_config import BertConfig


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    model = BertConfig(vocab=20, width=16, heads=2, layers=1, ffn=24, positions=16)
    sizes = kernels.Sizes(6, 16, 4, 10, 1, 2, 8, model)
    monkeypatch.setattr(kernels, "SIZES", {"cpu": sizes})


def timed(steps):
    """Times that can be told beforehand: the n-th step takes n + 1 seconds."""
    for step in steps.values():
        step()
    return {name: [1.0 + n] * 3 for n, name in enumerate(steps)}


def test_a_block_keeps_less_and_is_timed_against_the_stock_one():
    made = {row["name"]: row for row in kernels.block(timed)}
    assert made["BERT layer, fused"]["ratio"] == 2
    kept = made["BERT layer, fused: bytes kept for the backward pass"]
    assert 0 < kept["ratio"] < 1 and kept["unit"] == "MB"
    assert made["BERT layer, fused: bytes accessed"]["value"] > 0


def test_the_speed_is_told_beside_that_of_a_copy():
    """Stock takes 1 s, fused 2, and the copy of a quarter of the bytes 3."""
    found = kernels.layer_norm(timed)
    assert [row["ratio"] for row in found[:2]] == [1, 2]
    moved = 5 * 6 * 16 * 4
    assert found[3]["value"] == pytest.approx(moved / 2 / 1e9)
    copied = 2 * 4 * (moved // 16) / 3
    assert found[3]["ratio"] == pytest.approx(moved / 2 / copied)


@pytest.mark.parametrize("name", list(kernels.PARTS))
def test_every_part_runs(name):
    """Each is held to a stock form, and has the row of another beside it."""
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
        made = kernels.PARTS[name](timed)
    assert len({row["name"] for row in made}) == len(made) >= 4
    assert any("stock" in row["reference"] for row in made)
    assert all(row["ratio"] > 0 and row["value"] > 0 for row in made)


def test_pallas_is_timed_where_it_is_compiled(monkeypatch):
    with_pallas = ("xla", "pallas")
    monkeypatch.setattr(kernels, "impls", lambda: with_pallas)
    names = [row["name"] for row in kernels.cross_entropy(timed)]
    assert "cross entropy, fused, pallas" in names


def test_the_traffic_of_a_program():
    assert kernels.traffic(jax.jit(lambda x: x + 1), jnp.ones(50)) == 400
