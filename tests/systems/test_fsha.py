"""B-SL and FSHA: what binary messages, flips and a leak loss hide, and what not.

See test_b_sl.py for the codecs, the sheet's figures and a sweep of the leak loss.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax import codecs
from splitjax.core.codec import Context, chain
from splitjax.data import load_images
from splitjax.privacy import (
    decoder_inversion,
    distance_correlation,
    ridge_inversion,
    variance_left,
)
from splitjax.studies.fsha.fsha import play
from splitjax.studies.fsha.options import ARMS, Hijack

KNOWN = 1000


@pytest.fixture(scope="module")
def digits():
    """Pixels from 0 to 1, and classes."""
    table = load_images("digits", "train")
    image = table.image.reshape(len(table), -1).astype(np.float32)
    return image / image.max(), table.label


@pytest.fixture(scope="module")
def before_signs(digits):
    """A random dense layer of 512, each value normed over the data."""
    x, _ = digits
    z = x @ np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32)
    return (z - z.mean(0)) / z.std(0)


def decoded(codec, z, key):
    """What a receiver has of a message."""

    @jax.jit
    def run(z, key):
        state = codec.init(z)
        message, _ = codec.encode(z, state, Context(key))
        return codec.decode(message, state)[0]

    return np.asarray(run(jnp.asarray(z), key))


def signs(*between):
    return chain(codecs.sign(), *between, codecs.pack_signs())


def left(x, z):
    guess = ridge_inversion(z[:KNOWN], x[:KNOWN])
    return variance_left(x[KNOWN:], guess(z[KNOWN:]))


def test_the_more_bits_flip_the_less_is_seen(digits, before_signs, key):
    """By an attacker who fits its ridge; test_b_sl.py has the sheet's, who does not."""
    x, _ = digits
    found = []
    for epsilon in (8.0, 4.0, 2.0, 1.0, 0.5):
        z = decoded(signs(codecs.randomize(epsilon)), before_signs, key)
        found.append(left(x, z))
    assert (np.diff(found) > 0).all()
    np.testing.assert_allclose(found[1:], [0.08, 0.16, 0.35, 0.64], rtol=0.25)


def test_signs_alone_hide_little(digits, before_signs, key):
    x, _ = digits
    plain = left(x, before_signs)
    coarse = left(x, decoded(codecs.quantize(4), before_signs, key))
    binary = left(x, decoded(signs(), before_signs, key))
    assert plain < 1e-6 < coarse < 0.02 < binary < 0.12
    run = jax.jit(distance_correlation)
    assert float(run(x[:500], before_signs[:500])) > 0.98
    assert float(run(x[:500], jnp.sign(before_signs[:500]))) > 0.95


def test_a_decoder_sees_through_signs_too(digits, before_signs, key):
    x, _ = digits
    z = decoded(signs(), before_signs, key)
    guess = decoder_inversion(z[:KNOWN], x[:KNOWN], key=key, width=128, steps=400)
    assert variance_left(x[KNOWN:], guess(z[KNOWN:])) < 0.5


def test_the_attack_begins_to_see():
    quick = Hijack(steps=400, width=4, blocks=1, critic_rate=3e-3)
    seen = play(quick, ARMS["plain"], 0)
    assert len(seen["curve"]) == 100
    assert np.mean(seen["curve"][-10:]) < 0.6 * seen["curve"][0]
    assert seen["flagged"] is not None and seen["pictures"].shape == (2, 8, 8, 8, 1)


@pytest.mark.slow
def test_fsha_on_every_defense():
    """Sheet 4 (f) 6; what binary messages hide is printed, not promised."""
    hijack = Hijack()
    found = {name: play(hijack, arm, 0) for name, arm in ARMS.items()}
    for name, run in found.items():
        print(f"{name:20} {run['share']} {run['gap_early']} {run['flagged']}")
    assert found["plain"]["share"] < 0.3
    # A cloud that sends zeros sees nothing: it is the attack that makes the edge leak.
    assert found["zero"]["share"] > 1
    assert found["zero"]["curve"][-1] > 0.9 * found["zero"]["curve"][0]
    # Who knows the defense sees through it better than who does not.
    for name in ("binary", "noise", "all"):
        assert found[f"{name}, adaptive"]["share"] < 0.8 * found[name]["share"]
    for name, run in found.items():
        assert (run["flagged"] is None) == ARMS[name].cloud.startswith("honest")
