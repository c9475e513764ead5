import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.message import Sized, gradient_of, is_sized, mask_of, tree_bytes
from splitjax.core.tree import spec_of, split_floats


def sized(used, rows=4, dtype=jnp.float32):
    return Sized(jnp.ones((rows, 3), dtype), jnp.int32(used))


MESSAGE = {"h": sized(2), "ids": jnp.arange(4), "list": [jnp.ones(2), sized(3)]}


@pytest.mark.parametrize(
    ("tree", "size"),
    [
        ({}, 0),
        (None, 0),
        (jnp.zeros((2, 3)), 24),
        (jnp.zeros((2, 3), jnp.bfloat16), 12),
        (jnp.zeros((2, 0)), 0),
        (np.float64(1), 8),
        ({"a": np.ones(3, bool), "b": [np.zeros(2, np.uint16), None]}, 7),
        (sized(1), 48),  # whole, and nothing for the count
        (MESSAGE, 48 + 16 + 8 + 48),
    ],
    ids=str,
)
def test_bytes_of_arrays_and_of_their_specs(tree, size):
    assert tree_bytes(tree) == size
    assert tree_bytes(spec_of(tree)) == size


def test_bytes_are_exact_where_int32_would_overflow():
    spec = jax.ShapeDtypeStruct((2**20, 2**12), jnp.float32)
    assert tree_bytes(spec) == 2**34


def test_a_sized_leaf_passes_through_jit_and_tree_map():
    out = jax.jit(lambda s: jax.tree.map(lambda a: 2 * a, s))(sized(1))
    assert is_sized(out) and int(out.used) == 2 and float(out.buffer[0, 0]) == 2
    assert not is_sized(out.buffer) and not is_sized({"h": out})


def test_a_gradient_keeps_the_counts_of_its_message():
    gradient = jax.tree.map(lambda a: -a, split_floats(MESSAGE)[0])
    out = gradient_of(gradient, MESSAGE)
    assert out["ids"] is None
    assert int(out["h"].used) == 2 and int(out["list"][1].used) == 3
    assert float(out["h"].buffer[0, 0]) == -1 and out["list"][0].tolist() == [-1, -1]


def test_a_gradient_that_is_no_array_stays():
    assert gradient_of(None, jnp.arange(2)) is None
    assert gradient_of((), ()) == ()


def test_a_gradient_of_another_message_is_refused():
    with pytest.raises(ValueError):
        gradient_of({"h": sized(1)}, MESSAGE)


def test_the_mask_of_a_dict():
    assert mask_of({"mask": 1, "h": 2}) == 1
    assert mask_of({"h": 2}) is None
    assert mask_of(jnp.ones(2)) is None
