import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.cut import cut
from splitjax.core.keys import fold
from splitjax.core.stage import (
    Repeat,
    Segment,
    Stage,
    join,
    merge_aux,
    output_spec,
    repeat,
    with_apply,
    with_loss,
)
from splitjax.core.still import still
from splitjax.core.tree import spec_of

WIDTH = 4


def noisy(name, **kwargs) -> Stage:
    """x @ kernel and noise of the stage's own key; it counts its calls."""

    def init(key, spec):
        kernel = jax.random.normal(fold(key, "kernel"), (spec.shape[-1], WIDTH))
        return {"kernel": kernel}, {"calls": jnp.int32(0)}

    def apply(params, state, x, *, key, train):
        y = x @ params["kernel"]
        if train:
            y = y + jax.random.normal(key, y.shape)
        aux = {"loss": y.sum(), "norm": jnp.abs(y).max()}
        return jnp.tanh(y), {"calls": state["calls"] + 1}, aux

    return Stage(name, init, apply, **kwargs)


def reader(name, of) -> Stage:
    """x times the transposed kernel of another stage."""

    def apply(params, state, x, *, key, train, tied):
        return x @ tied[of]["kernel"].T, state, {}

    return Stage(name, lambda key, spec: ({}, {}), apply, reads=(of,))


def run(stage, key, x, *, train=True):
    params, state = stage.init(key, spec_of(x))
    return params, stage.apply(params, state, x, key=key, train=train)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


@pytest.fixture
def x(key):
    return jax.random.normal(key, (3, WIDTH))


def test_join_is_associative_to_the_bit(key, x):
    a, b, c = (noisy(name) for name in "abc")
    flat = run(join([a, b, c]), key, x)
    assert sorted(flat[0]) == ["a", "b", "c"]
    same(flat, run(join([join([a, b]), c]), key, x))
    same(flat, run(join([a, join([b, join([c])], name="right")], name="all"), key, x))


def test_joining_runs_stages_in_order_each_with_its_own_key(key, x):
    stages = [noisy("a"), noisy("b")]
    params, (y, state, aux) = run(join(stages), key, x)
    want, losses = x, []
    for stage in stages:
        made = stage.init(fold(key, stage.name), spec_of(want))
        same(made[0], params[stage.name])
        want, _, own = stage.apply(*made, want, key=fold(key, stage.name), train=True)
        losses.append(own["loss"])
    same(y, want)
    assert aux["loss"] == losses[0] + losses[1] and set(aux) == {"loss", "a", "b"}
    assert state == {"a": {"calls": 1}, "b": {"calls": 1}}


def test_no_stages_are_the_identity(key, x):
    params, (y, state, aux) = run(join([]), key, x)
    assert params == state == aux == {} and y is x
    same(run(join([join([]), noisy("a")]), key, x), run(join([noisy("a")]), key, x))


def test_names_are_unique():
    with pytest.raises(ValueError, match=r"\['a'\] occur twice"):
        join([noisy("a"), join([noisy("b"), noisy("a")])])


def test_tied_parameters_get_the_gradient_of_both_uses(key, x):
    model = join([noisy("a"), noisy("b"), reader("back", "a")])
    params, state = model.init(key, spec_of(x))

    def loss(params):
        return model.apply(params, state, x, key=None, train=False)[0].sum()

    def untied(first, second):
        h = jnp.tanh(jnp.tanh(x @ first) @ params["b"]["kernel"])
        return (h @ second.T).sum()

    kernel = params["a"]["kernel"]
    want = sum(jax.grad(untied, (0, 1))(kernel, kernel))
    got = jax.grad(loss)(params)["a"]["kernel"]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_tie_to_nobody_names_the_stages():
    with pytest.raises(ValueError, match=r"'back' reads .*'a'.*\(b, back\)"):
        join([noisy("b"), reader("back", "a")])


@pytest.mark.parametrize("first", [0, 2])
def test_a_repeated_block_is_the_unrolled_one(first, key, x):
    block = noisy("blocks")
    params, (y, state, aux) = run(repeat(block, 3, first=first), key, x)
    want, losses = x, []
    for i in range(3):
        own = fold(key, first + i)
        made = block.init(own, spec_of(x))
        same(made[0], jax.tree.map(lambda leaf, i=i: leaf[i], params))
        want, _, about = block.apply(*made, want, key=own, train=True)
        losses.append(about["loss"])
        np.testing.assert_allclose(aux["norm"][i], about["norm"], rtol=1e-6)
    # The scan is another program: last bits differ.
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(aux["loss"], sum(losses), rtol=1e-5)
    assert state["calls"].tolist() == [1, 1, 1]


def test_gradients_pass_through_a_repeated_block(key, x):
    block, stack = noisy("blocks"), repeat(noisy("blocks"), 3)
    params, state = stack.init(key, spec_of(x))

    def rolled(params):
        return stack.apply(params, state, x, key=None, train=False)[0].sum()

    def unrolled(params):
        y = x
        for i in range(3):
            row = jax.tree.map(lambda leaf, i=i: leaf[i], params)
            y = block.apply(row, {"calls": 0}, y, key=None, train=False)[0]
        return y.sum()

    got, want = jax.grad(rolled)(params), jax.grad(unrolled)(params)
    np.testing.assert_allclose(got["kernel"], want["kernel"], rtol=1e-5, atol=1e-6)


def test_what_cannot_be_repeated():
    with pytest.raises(ValueError, match="count of 1 or more: 0"):
        repeat(noisy("a"), 0)
    with pytest.raises(ValueError, match="'back'"):
        repeat(reader("back", "a"), 2)


def test_a_local_loss_joins_the_stages_own(key, x):
    stage = noisy("a", tags=frozenset({"tag"}), start=lambda params, spec: "cache")
    helped = with_loss(stage, lambda x, y: jnp.sum(y - x))
    params, (y, state, aux) = run(stage, key, x)
    params2, (y2, state2, aux2) = run(helped, key, x)
    same((params, y, state), (params2, y2, state2))
    np.testing.assert_allclose(aux2["loss"], aux["loss"] + jnp.sum(y - x), rtol=1e-6)
    assert helped.tags == {"tag"} and helped.start(None, None) == "cache"
    tied = with_loss(reader("back", "a"), lambda x, y: jnp.sum(y))
    assert set(run(join([noisy("a"), tied]), key, x)[1][2]) == {"loss", "a"}


@pytest.mark.parametrize(
    "made",
    [join([noisy("a"), noisy("b")]), repeat(noisy("c"), 2)],
    ids=lambda s: s.name,
)
def test_what_is_added_to_several_stages_is_not_opened_away(made, key, x):
    helped = with_loss(made, lambda x, y: jnp.float32(100))
    assert not isinstance(helped, (Repeat, Segment))
    plain = with_apply(made, made.apply)
    runs = [run(join([noisy("e"), stage]), key, x) for stage in (helped, plain)]
    assert set(runs[0][0]) == {"e", made.name}
    losses = [float(aux["loss"]) for _, (_, _, aux) in runs]
    assert losses[0] - losses[1] == pytest.approx(100, abs=1e-3)


def test_a_still_segment_is_still_in_another_and_can_be_parted(key, x):
    made = cut([noisy("a"), noisy("b"), noisy("c")], after="b")
    calm = still(made.segments[0])
    both = join([calm, noisy("c")])
    params, state = both.init(key, x)
    first = both.apply(params, state, x, key=key, train=True)[0]
    own = calm.apply(params[calm.name], state[calm.name], x, key=None, train=False)[0]
    third = noisy("c").apply(
        params["c"], state["c"], own, key=fold(key, "c"), train=True
    )
    same(first, third[0])
    parted = dataclasses.replace(made, segments=(calm, made.segments[1]))
    tree = {"a": 1, "b": 2, "c": 3}
    assert parted.partition(tree) == ({"a": 1, "b": 2}, {"c": 3})


def test_a_tie_to_a_stack_that_is_cut_is_refused():
    stages = [repeat(noisy("a"), 4), noisy("b"), reader("back", "a")]
    with pytest.raises(ValueError, match=r"'back' reads .* 'a', a stack that is cut"):
        cut(stages, after="a/1")


def test_losses_add_up_and_the_rest_goes_by_name():
    total = merge_aux({}, {}, "a")
    total = merge_aux(total, {"loss": 1, "load": 2}, "b")
    total = merge_aux(total, {"loss": 3}, "c")
    assert total == {"loss": 4, "b": {"load": 2}}


def test_an_output_spec_computes_nothing(key):
    spec = jax.ShapeDtypeStruct((2**20, 2**20, WIDTH), jnp.float32)
    params, state = noisy("a").init(key, spec)
    assert output_spec(noisy("a"), params, state, spec).shape == (2**20, 2**20, WIDTH)
