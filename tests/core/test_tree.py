import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.tree import (
    combine,
    is_float,
    nearest,
    path_name,
    spec_of,
    split_floats,
    where,
)


class Pair(NamedTuple):
    first: object
    second: object


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Node:
    kernel: object


TREE = {
    "a": {"kernel": 1.0, "bias": 2.0},
    "b": [Pair(3.0, (4.0, None)), Node(5.0)],
}


def names(tree):
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def test_paths_through_every_kind_of_node():
    assert names(TREE) == [
        "a/bias",
        "a/kernel",
        "b/0/first",
        "b/0/second/0",
        "b/1/kernel",
    ]
    assert path_name(()) == ""


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (".*/kernel", ["a/kernel", "b/1/kernel"]),
        ("a/.*", ["a/bias", "a/kernel"]),
        ("a/bias|b/0/first", ["a/bias", "b/0/first"]),
        (".*", names(TREE)),
    ],
)
def test_where_matches_whole_paths(pattern, found):
    mask = where(pattern)(TREE)
    assert jax.tree.structure(mask) == jax.tree.structure(TREE)
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    assert [path_name(path) for path, yes in leaves if yes is True] == found
    assert {yes for _, yes in leaves} <= {True, False}


@pytest.mark.parametrize("pattern", ["kernel", "a", "a/kern", "/a/kernel"])
def test_where_refuses_what_matches_nothing_and_lists_the_leaves(pattern):
    with pytest.raises(ValueError, match="a/bias\n  a/kernel") as error:
        where(pattern)(TREE)
    assert repr(pattern) in str(error.value)
    with pytest.raises(ValueError, match="no leaves"):
        where(pattern)({})


def test_where_sees_a_node_whole_when_told_to():
    mask = where("b/1", is_leaf=lambda node: isinstance(node, Node))(TREE)
    assert mask["b"][1] is True and mask["a"] == {"kernel": False, "bias": False}


@pytest.mark.parametrize(
    ("dtype", "yes"),
    [
        ("float32", True),
        ("bfloat16", True),
        ("float16", True),
        ("float8_e4m3fn", True),
        ("int8", False),
        ("uint8", False),
        ("bool", False),
        ("complex64", False),
    ],
)
def test_what_takes_a_gradient(dtype, yes):
    assert is_float(jax.ShapeDtypeStruct((1,), jnp.dtype(dtype))) == yes


def test_a_key_takes_no_gradient(key):
    assert not is_float(key)


def test_floats_part_and_join_again():
    tree = {
        "h": np.ones((2, 3), np.float32),
        "none": None,
        "ids": (np.arange(2), np.array([True])),
        "low": jnp.zeros(1, jnp.bfloat16),
    }
    floats, rest = split_floats(tree)
    assert names(floats) == ["h", "low"] and names(rest) == ["ids/0", "ids/1"]
    again = combine(floats, rest)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    same = jax.tree.map(lambda a, b: a is b, again, tree)
    assert jax.tree.all(same)
    turned = combine(rest, floats)
    assert jax.tree.structure(turned) == jax.tree.structure(tree)


def test_split_floats_is_a_part_of_a_traced_function():
    tree = {"h": jnp.arange(3.0), "ids": jnp.arange(3)}

    def loss(floats):
        tree_again = combine(floats, split_floats(tree)[1])
        return (tree_again["h"] * tree_again["ids"]).sum()

    with jax.numpy_dtype_promotion("standard"):
        grad = jax.jit(jax.grad(loss))(split_floats(tree)[0])
    assert grad["ids"] is None and grad["h"].tolist() == [0, 1, 2]


def test_specs_hold_no_data():
    spec = spec_of({"h": jnp.ones((2, 3), jnp.bfloat16), "s": np.int32(1)})
    assert spec["h"] == jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)
    assert spec["s"] == jax.ShapeDtypeStruct((), jnp.int32)
    assert spec_of(spec) == spec


def test_nearest_offers_one_word_or_none():
    assert nearest("layre_1", ["layer_1", "head"]).startswith("did you mean 'layer_1'?")
    assert nearest("zzz", ("layer_1", "head")) == "There are: layer_1, head"


def test_a_box_of_flax_has_the_name_of_its_place():
    """Not so a dict's own key, which may well be called value: attention has one."""
    state = nnx_module()
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert names == ["bias", "kernel"]
    params = {"value": {"kernel": 1.0}}
    [(path, _)] = jax.tree_util.tree_leaves_with_path(params)
    assert path_name(path) == "value/kernel"


def nnx_module():
    from flax import nnx

    return nnx.state(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))
