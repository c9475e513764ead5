import zlib

import jax
import jax.numpy as jnp

from splitjax.core.keys import fold


def data(key):
    return jax.random.key_data(key).tolist()


def test_a_name_is_its_crc_on_every_machine(key):
    """The numbers are written down: another hash would change every saved run."""
    assert zlib.crc32(b"layer_0") == 2_791_796_118
    assert fold(key, "layer_0") == jax.random.fold_in(key, 2_791_796_118)
    assert data(fold(key, "layer_0", 3)) == [337191073, 2684065857]


def test_parts_are_folded_one_after_the_other(key):
    assert fold(key, "a", "b", 3) == fold(fold(fold(key, "a"), "b"), 3)
    assert fold(key) == key


def test_streams_differ_by_name_number_order_and_key(key):
    made = [
        fold(key, "a"),
        fold(key, "b"),
        fold(key, "ab"),
        fold(key, "a", "b"),
        fold(key, "b", "a"),
        fold(key, 0),
        fold(key, 1),
        fold(key, "0"),
        fold(jax.random.key(1), "a"),
        key,
    ]
    assert len({tuple(data(k)) for k in made}) == len(made)


def test_numbers_may_be_traced(key):
    numbers = jnp.arange(3)
    mapped = jax.jit(jax.vmap(lambda n: fold(key, "slot", n)))(numbers)
    assert [data(k) for k in mapped] == [data(fold(key, "slot", n)) for n in range(3)]


def test_no_key_stays_no_key():
    assert fold(None, "a", 1) is None
