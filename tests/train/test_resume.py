"""An interrupted run ends where the undisturbed one does, to the bit."""

import jax
import numpy as np
import pytest

from splitjax.storage import log
from splitjax.train import loop, runs

# Two epochs of three steps, with chance wherever there can be some.
CHANCE = dict(epochs=2, micro=2, eval_every=1)
ENCODER = dict(forward_bits=8, backward_bits=3, bridge="pca")
DECODER = dict(
    after=("embed", "layer_0/attention"),
    forward="quantize(8)",
    backward="quantize(3, rounding='stochastic')",
)


KINDS = ["encoder", pytest.param("decoder", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=KINDS)
def experiment(request, options, language, tiny_model, tmp_path_factory):
    """A function to the experiment; its model has dropout."""
    if request.param == "decoder":
        return lambda **more: language("gpt2", **CHANCE, **DECODER, **more)
    config = (tiny_model / "config.json").read_text()
    folder = tmp_path_factory.mktemp("dropout")
    for path in tiny_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    for name in names:
        assert f'"{name}": 0.0' in config
        config = config.replace(f'"{name}": 0.0', f'"{name}": 0.2')
    (folder / "config.json").write_text(config)
    return lambda **more: options(model=str(folder), **CHANCE, **ENCODER, **more)


@pytest.fixture(scope="module")
def undisturbed(experiment, watch, tmp_path_factory):
    return watch(experiment(checkpoint_every=2), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("at", "value", "every"),
    [
        pytest.param(5, "loss", 2, id="in an epoch"),
        pytest.param(3, "dev_score", 3, id="before a score"),
    ],
)
def test_a_run_goes_on_where_it_stopped(
    at, value, every, experiment, undisturbed, watch, tmp_path, power_cut
):
    with power_cut(at, value):
        watch(experiment(checkpoint_every=every), tmp_path)
    assert not (tmp_path / "summary.json").exists()
    resumed = watch(experiment(checkpoint_every=every), tmp_path)
    assert int(resumed.end.step) == 6
    jax.tree.map(np.testing.assert_array_equal, resumed.end, undisturbed.end)
    assert log.read(tmp_path) == log.read(undisturbed.folder)
    one, other = ({**s.summary, "seconds": 0} for s in (resumed, undisturbed))
    assert one == other


def test_chance_is_really_there(undisturbed, experiment, watch, tmp_path):
    """Else the test above would pass with a key that is never restored."""
    lines = [line for line in log.read(undisturbed.folder) if "loss" in line]
    assert len(lines) == 6 and len({line["loss"] for line in lines}) == 6
    other = runs.open_run(experiment(), 0, tmp_path)
    [batch, *_] = next(iter(other.parts.train.epoch(0, micro=2)))
    tick = loop.tick_batch(batch, batch["n_valid"])
    driver, losses = other.driver, []
    for key in (0, 1):
        driver.key = jax.random.key(key)
        state = jax.tree.map(jax.numpy.copy, other.state)
        losses.append(float(driver.step(state, [tick, tick])[1]["loss"]))
    assert losses[0] != losses[1]
