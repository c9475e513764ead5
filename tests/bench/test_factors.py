import jax.numpy as jnp
import pytest

from splitjax.bench import factors
from splitjax.models.resnet import ResNetConfig


def timed(steps, **_):
    """Times that can be told beforehand: the n-th step takes n seconds."""
    for step in steps.values():
        step()
    return {name: [1.0 + n] * 3 for n, name in enumerate(steps)}


def test_a_projection_is_compared_with_a_decomposition_and_a_peer(monkeypatch):
    monkeypatch.setattr(factors, "PEERS", {8: 0.5})
    made = factors.projection(timed)
    assert [row["ratio"] for row in made] == [0.5, 1.0, 2.0, 0.5, 1.0]
    bounds = [row["bound"] for row in made]
    assert bounds == [0.8, None, 0.2, 0.45, None]
    assert "PEERS" in made[2]["reference"]


def test_the_share_of_a_run(monkeypatch):
    tiny = ResNetConfig((1,), width=8)
    monkeypatch.setattr(factors, "CONFIGS", {"resnet20": tiny})
    monkeypatch.setattr(factors, "SIZE", 8)
    *_, part = factors.share(timed)
    assert part["value"] == pytest.approx(100 * (2.0 - 1) / 250)
    assert part["ratio"] == pytest.approx(part["value"] / 2) and part["bound"] == 1


def test_a_product_is_held_to_its_operations(monkeypatch):
    """Rank 76 of 384 x 1536: 76 (384 + 1536) of 384 1536 multiply-adds a token."""
    monkeypatch.setattr(factors, "SHARES", (0.25,))
    monkeypatch.setattr(factors, "TOKENS", (2,))
    dense, row = factors.product_dot(timed)
    part = 76 * (384 + 1536) / (384 * 1536)
    assert row["ratio"] == pytest.approx(2.0 / part, rel=1e-3)
    assert row["bound"] == 1.3 and dense["bound"] is None
    assert row["reference"].startswith(f"{part:.3f} of")


def test_the_decomposition_written_down_keeps_the_energy():
    w = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
    made = factors.by_svd(w, 2)
    assert float(jnp.square(made).sum()) == pytest.approx(14)
    assert float(made[2, 2]) == 0
