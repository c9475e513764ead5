"""Flip rates and the likelihood ratio are in tests/systems/test_b_sl.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import (
    Context,
    Sized,
    binary,
    chain,
    delta,
    on_tree,
    pack_signs,
    quantize,
    randomize,
    sign,
    top_k,
)

KEY = jax.random.key(5)


def encode(codec, x, key=KEY):
    return codec.encode(x, codec.init(x), Context(key))[0]


def test_it_sends_signs_whatever_comes():
    """So the promise needs no `sign` before it: sizes do not leak."""
    x = jnp.array([0.0, -0.0, 5.0, -7.0, jnp.nan, jnp.inf, -jnp.inf])
    signs = jnp.array([1.0, 1, 1, -1, 1, 1, -1])
    sent = encode(randomize(1.0), x).node
    assert set(np.unique(sent)) == {-1.0, 1.0}
    np.testing.assert_array_equal(sent, encode(randomize(1.0), signs).node)


def test_other_keys_flip_other_bits():
    x = jnp.ones(100)
    one = encode(randomize(1.0), x).node
    np.testing.assert_array_equal(one, encode(randomize(1.0), x).node)
    assert (one != encode(randomize(1.0), x, jax.random.key(6)).node).any()


def test_unused_rows_are_not_flipped():
    x = Sized(jnp.ones((50, 4)).at[9:].set(0.0), jnp.int32(9))
    sent = encode(chain(sign(), randomize(0.1)), x).node.node
    assert not sent.buffer[9:].any() and (sent.buffer[:9] < 0).any()


def test_a_large_epsilon_flips_nothing():
    x = jax.random.normal(KEY, (64, 65))
    noisy = chain(sign(), randomize(40.0), pack_signs())
    plain, state = binary(), noisy.init(x)
    back, _ = noisy.decode(encode(noisy, x), state)
    same, _ = plain.decode(encode(plain, x), plain.init(x))
    np.testing.assert_array_equal(back, same)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bad_epsilon_raises(epsilon):
    text = rf"randomize\(epsilon={epsilon}\): a finite number above 0"
    with pytest.raises(ValueError, match=text):
        randomize(epsilon)


def test_no_key_raises():
    with pytest.raises(ValueError, match="needs a key"):
        encode(randomize(1.0), jnp.ones(2), key=None)


def test_it_says_its_mechanism():
    assert randomize(2.0).mechanism == ("randomized_response", 2.0, "value")
    assert binary().mechanism is None


@pytest.mark.parametrize(
    "parts",
    [
        (quantize(8), randomize(2.0)),
        (top_k(0.1), randomize(2.0)),
        (sign(), pack_signs(), randomize(2.0)),
        (sign(), delta(quantize(2)), randomize(2.0)),
        (on_tree({"h": quantize(8)}), randomize(2.0)),
        (quantize(8), on_tree({"h": randomize(2.0)})),
        (on_tree({"h": quantize(8)}), on_tree({"h": randomize(2.0)})),
    ],
    ids=lambda parts: "+".join(part.name for part in parts),
)
def test_codes_that_were_made_before_the_noise_are_refused(parts):
    """They would cross without it, and a budget would promise what is not so."""
    with pytest.raises(ValueError, match="adds noise and stands after.*noise first"):
        chain(*parts)


def test_noise_may_stand_before_codes_and_beside_them():
    assert chain(randomize(2.0), quantize(8)).parts[0].mechanism
    beside = on_tree({"h": quantize(8)}), on_tree({"g": randomize(2.0)})
    assert len(chain(*beside).parts) == 2
