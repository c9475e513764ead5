import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import residual_bytes
from splitjax.studies.residuals.network import ARMS, network, start
from splitjax.studies.residuals.residuals import Residuals, play, table

SMALL = dict(widths=(4,), epochs=2, batch_size=32, limit=192, every=4, first=1e-3)


@pytest.fixture(scope="module")
def runs():
    return {arm: play(Residuals(**SMALL), arm, 0) for arm in ("exact", "8 bits")}


def test_it_learns_as_an_exact_network_does(runs):
    """From one start in one order, so that losses differ by what codes lose alone."""
    exact, coded = runs["exact"], runs["8 bits"]
    assert exact["loss"] < np.log(10)
    assert exact["loss"] != coded["loss"]
    assert coded["loss"] == pytest.approx(exact["loss"], abs=0.02)
    assert exact["missed"] == exact["missed_share"] == 0
    assert coded["missed"] > 0  # 8 bits reach over .5 at the first bound of .001
    values = 12 * 32 * (8 * 8 + 4 * 4 * 4)  # steps, pictures, inputs of two layers
    assert coded["missed_share"] == pytest.approx(coded["missed"] / values)


def test_bounds_were_moved_and_ratios_are_of_real_bytes(runs):
    exact, coded = runs["exact"], runs["8 bits"]
    assert set(coded["bounds"]) == {"conv_00", "head"} and not exact["bounds"]
    assert all(bound != pytest.approx(1e-3) for bound in coded["bounds"].values())
    assert coded["bytes"]["conv_00"][0] == 4 * 32 * 8 * 8
    assert coded["bytes"]["head"][0] == 4 * 32 * 4 * 4 * 4
    assert exact["ratio"] == 1 and coded["ratio"] > 2
    each = [a / b for a, b in coded["bytes"].values()]
    assert min(each) < coded["ratio"] < max(each)


def test_less_is_kept_in_memory(runs):
    assert runs["8 bits"]["kept"] < runs["exact"]["kept"] / 3
    lines = table([{"name": name, "runs": [run]} for name, run in runs.items()])
    assert len(lines.splitlines()) == 4 and "1.0x" in lines
    share = 100 * runs["8 bits"]["missed_share"]
    assert f"| {share:.2g} %" in lines.splitlines()[-1]


def test_every_arm_computes_the_same_and_keeps_what_its_bits_are():
    x = jax.random.uniform(jax.random.key(1), (8, 8, 8, 1))
    y = jnp.arange(8)
    params = start((4,), (8, 8, 1), 10, bound=1e-2, key=jax.random.key(0))
    made = {arm: network(arm) for arm in ARMS}
    logits = {arm: np.asarray(one.logits(params, x)) for arm, one in made.items()}
    for arm in ARMS:
        np.testing.assert_array_equal(logits[arm], logits["exact"], err_msg=arm)
    kept = {arm: residual_bytes(one.loss, params, x, y) for arm, one in made.items()}
    assert kept["6 bits"] < kept["8 bits"] < kept["exact"]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"arms": ("exakt",)}, "arms='exakt'"),
        ({"every": 0}, "every=0"),
        ({"widths": ()}, "widths, seeds and arms"),
        ({"steps": -1}, "steps=-1: it must be 0 or more"),
        ({"limit": -1}, "limit=-1: it must be 0 or more"),
        ({"limit": 8, "batch_size": 9}, "batch_size=9: .* with limit=8"),
    ],
)
def test_bad_options_are_told(wrong, text):
    with pytest.raises(ValueError, match=text):
        Residuals(**wrong).validate()


def test_a_batch_of_more_pictures_than_there_are_is_told():
    options = Residuals(**{**SMALL, "limit": 0, "batch_size": 10_000})
    options.validate()
    with pytest.raises(ValueError, match="batch_size=10000: no step has so many of"):
        play(options, "exact", 0)


def test_pictures_must_halve():
    with pytest.raises(ValueError, match="cannot be halved 4 times"):
        Residuals(widths=(2, 2, 2, 2)).pictures("train")
