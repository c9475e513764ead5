"""Split equals un-split: whatever the place, the number and the owners of the cuts."""

import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.core.stage import Stage, join, repeat
from splitjax.core.tree import spec_of
from splitjax.metrics.loss import squared_error
from splitjax.models.mlp import mlp, mlp_nnx

IDENTITY = Link(chain(), chain())
WIDTHS = [8, 8, 8, 1]
PLACES = ["dense_0", "dense_1", "dense_2", "head"]
CUTS = [places for n in (1, 2) for places in itertools.combinations(PLACES, n)]
CUTS += [tuple(PLACES[:3]), tuple(PLACES)]
# The quick way of tests/conftest.py fuses equal operations by the program around them.
EMITTERS = "xla_cpu_use_fusion_emitters"
AS_USERS = {EMITTERS: True} if EMITTERS in os.environ.get("XLA_FLAGS", "") else {}


def model(kind, **kwargs):
    if kind == "nnx":
        return mlp_nnx(6, WIDTHS, key=jax.random.key(7), **kwargs)
    return mlp(WIDTHS, **kwargs)


def loss(y, target):
    return squared_error(y[:, 0], target)


def data(key, rows=12, width=6):
    x = jax.random.normal(key, (rows, width))
    return x, {"y": jnp.sin(x).sum(-1), "n_valid": jnp.int32(rows - 2)}


def whole(stages, x, target, key, train=True):
    """The un-split loss, gradient and state, by plain JAX."""
    joined = join(stages)
    params, state = joined.init(jax.random.key(1), spec_of(x))

    def run(params):
        y, new, _ = joined.apply(params, state, x, key=key, train=train)
        return loss(y, target)[0], new

    step = jax.value_and_grad(run, has_aux=True)
    (value, new), grads = jax.jit(step, compiler_options=AS_USERS)(params)
    return params, state, value, grads, new


def parted(stages, places, x, target, key, links=None):
    """The split's loss, gradient and state, merged."""
    made = cut(stages, after=places)
    split = Split(made, links or (IDENTITY,) * len(places), loss)
    params, state = split.init(jax.random.key(1), spec_of(x))
    ends = split.init_links(params, state, spec_of(x))
    run = jax.jit(
        lambda p, s, e, k: split.value_and_grad(p, s, e, x, target, key=k),
        compiler_options=AS_USERS,
    )
    (value, extra), grads = run(params, state, ends, key)
    return made.merge(params), value, made.merge(grads), made.merge(extra["state"])


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(a).max())


@pytest.mark.parametrize("kind", ["linen", "nnx"])
@pytest.mark.parametrize("places", CUTS, ids="+".join)
def test_split_equals_unsplit_with_dropout_and_norm_state(kind, places, key):
    stages = model(kind, dropout=0.3, norm=True)
    x, target = data(key)
    params, _, value, grads, new = whole(stages, x, target, key)
    params2, value2, grads2, new2 = parted(stages, places, x, target, key)
    jax.tree.map(np.testing.assert_array_equal, params, params2)
    # The forward pass is the same operations in the same order.
    np.testing.assert_array_equal(value, value2)
    # XLA fuses the update of the statistics otherwise where the program ends there.
    jax.tree.map(close, new, new2)
    jax.tree.map(close, grads, grads2)


def test_parameters_part_exactly(key):
    stages = model("linen", norm=True)
    x, _ = data(key)
    made = cut(stages, after=("dense_0", "dense_2"))
    params, state = made.model.init(key, spec_of(x))
    parts = made.partition(params)
    assert [sorted(part) for part in parts] == [
        ["dense_0"],
        ["dense_1", "dense_2"],
        ["head"],
    ]
    for tree in (params, state):
        again = made.merge(made.partition(tree))
        jax.tree.map(np.testing.assert_array_equal, tree, again)


@pytest.mark.parametrize("place", ["dense_0", "blocks/0", "blocks/1", "blocks/2"])
def test_repeated_blocks_can_be_cut_between_any_two(place, key):
    first, block, _, head = mlp([8, 8, 8, 1], dropout=0.3, norm=True)
    block = type(block)("blocks", block.init, block.apply)
    stages = (first, repeat(block, 4), head)
    x, target = data(key)
    params, _, value, grads, new = whole(stages, x, target, key)
    params2, value2, grads2, new2 = parted(stages, (place,), x, target, key)
    assert jax.tree.leaves(params["blocks"])[0].shape[0] == 4
    jax.tree.map(np.testing.assert_array_equal, params, params2)
    np.testing.assert_array_equal(value, value2)
    jax.tree.map(close, new, new2)
    jax.tree.map(close, grads, grads2)


@pytest.mark.parametrize("places", [("blocks/0",), ("blocks/0", "blocks/2")])
def test_blocks_that_are_cut_apart_tell_of_every_one(places, key):
    def apply(params, state, x, *, key, train):
        return 2 * x, state, {"size": jnp.abs(x).mean()}

    block = Stage("blocks", lambda key, spec: ({}, {}), apply)
    stack, x = repeat(block, 4), jnp.ones((2, 1))
    split = Split(cut([stack], after=places), (IDENTITY,) * len(places), loss)
    params, state = split.init(key, spec_of(x))
    ends = split.init_links(params, state, spec_of(x))
    target = {"y": jnp.ones(2), "n_valid": jnp.int32(2)}
    (_, extra), _ = split.value_and_grad(params, state, ends, x, target, key=key)
    assert extra["metrics"]["blocks/size"].tolist() == [1, 2, 4, 8]


def test_a_place_may_be_a_prefix():
    made = cut(mlp([4, 4, 1]), after="dense_1")
    assert [s.name for s in made.segments[0].stages] == ["dense_0", "dense_1"]


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ("dense_9", ["'dense_9'", "did you mean 'dense_", "head"]),
        (("dense_1", "dense_0"), ["comes before an earlier cut"]),
        ("blocks/7", ["'blocks/7'", "blocks/0 to blocks/2"]),
    ],
)
def test_a_wrong_place_lists_the_stages(after, words):
    first, second, block, head = mlp([4, 4, 4, 1])
    block = type(block)("blocks", block.init, block.apply)
    with pytest.raises(ValueError) as error:
        cut((first, second, repeat(block, 3), head), after=after)
    for word in words:
        assert word in str(error.value)


def test_wrong_owners_are_refused():
    with pytest.raises(ValueError, match="2 cuts make 3 segments"):
        cut(mlp([4, 4, 1]), after=("dense_0", "dense_1"), owners=("edge", "cloud"))


def test_a_tie_has_one_owner(key):
    first, second, head = mlp([4, 4, 1])

    def tied(params, state, x, *, key, train, tied):
        return x @ tied["dense_0"]["dense"]["kernel"].T, state, {}

    back = type(head)("back", lambda k, s: ({}, {}), tied, reads=("dense_0",))
    x = jax.random.normal(key, (3, 4))
    joined = join((first, second, back))
    params, state = joined.init(key, spec_of(x))
    assert joined.apply(params, state, x, key=None, train=False)[0].shape == (3, 4)
    with pytest.raises(ValueError, match="tied leaf has one owner"):
        cut((first, second, back), after="dense_0")
