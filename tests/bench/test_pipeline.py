import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.bench import pipeline
from splitjax.train.timing import Watch

PEERS = {("gpipe", 2): 4.0, ("1f1b", 4): 2.0}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(pipeline, "SIZES", pipeline.Sizes(6, 8, 4))
    monkeypatch.setattr(pipeline, "PEERS", PEERS)


def test_every_step_has_the_loss_and_gradient_of_the_one_that_is_not_cut():
    x, target = (jax.random.normal(jax.random.key(i), (8, 6)) for i in (1, 2))
    steps, pipes = pipeline.steps_of(x, target)
    assert list(pipes) == ["gpipe, n=2", "1f1b, n=4"]
    assert len(steps) == 4
    value, grads = steps.pop(pipeline.WHOLE)()
    for name, step in steps.items():
        loss, found = step()
        if "mpmd" in name:
            found = stacked(pipes[name.split(":")[0]].pipe.gathered(found))
        np.testing.assert_allclose(loss, value, rtol=1e-6)
        for a, b in zip(
            jax.tree.leaves(found), jax.tree.leaves(stacked(grads)), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-6)


def stacked(layers):
    return jax.tree.map(lambda *a: jnp.stack(a), *layers.values())


def test_rows_of_both_executors_stand_beside_torchs():
    [part] = pipeline.PARTS.values()
    made = {row["name"]: row for row in part(Watch(1))}
    assert all(row["ratio"] > 0 and row["bound"] is None for row in made.values())
    for name in ("gpipe, n=2: spmd, a step", "1f1b, n=4: mpmd, makespan"):
        assert made[name]["reference"] == pipeline.WHOLE
    assert "1f1b, n=4: spmd, a step" not in made
    torch = made["1f1b, n=4: torch on another machine"]
    assert (torch["value"], torch["ratio"]) == (2.0, 0.5)
    assert torch["reference"] == "torch, gpipe, n=2"
    assert len(made) == 1 + 1 + 2 + 2 + 2
