import jax
import jax.numpy as jnp
import pytest

from splitjax.core.stage import Stage, with_loss
from splitjax.models.bert import bert
from splitjax.models.bert_config import BertConfig
from splitjax.models.heads import regression
from splitjax.models.squeeze import Squeeze
from splitjax.optim.curvature import with_taps
from splitjax.parallel.alike import Row, blocks_in_a_row

CONFIG = BertConfig(vocab=17, width=16, heads=2, layers=5, ffn=32, positions=16)
X = {
    "ids": jax.ShapeDtypeStruct((8, 8), jnp.int32),
    "mask": jax.ShapeDtypeStruct((8, 8), jnp.bool_),
}


def found(stages, x=X, *, change=lambda params: params, places=2):
    params, state, seen = {}, {}, x
    for stage in stages:
        own = jax.eval_shape(stage.init, jax.random.key(0), seen)
        params[stage.name], state[stage.name] = own
        seen = jax.eval_shape(
            lambda p, s, x, at=stage: at.apply(p, s, x, key=None, train=False)[0],
            *own,
            seen,
        )
    params = jax.eval_shape(change, params)
    return blocks_in_a_row(stages, params, state, x, places=places)


def test_layers_of_two_stages_are_blocks():
    stages = bert(CONFIG, regression())  # embed, 10 stages, pool, head
    assert found(stages) == Row(1, 2, 4)
    assert found(stages, places=5) == Row(1, 2, 5)
    assert found(stages, places=3) == Row(1, 2, 3)


def test_a_parted_layer_is_no_block_among_others():
    """Its stages are four: the row is what is left behind it."""
    stages = bert(CONFIG, regression(), squeeze={1: Squeeze(4)})
    names = [stage.name for stage in stages]
    assert found(stages) == Row(names.index("layer_1/expand") + 1, 2, 2)


def scaled(name, by):
    def apply(params, state, x, *, key, train):
        return x * by, state, {}

    return Stage(name, lambda key, spec: ({}, {}), apply)


def test_a_constant_makes_another_block():
    """Be it a number in the program, or an array that it holds."""
    x = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    one, two = jnp.arange(3.0)[None], jnp.arange(3.0)[None] + 1
    for other in (2.0, two):
        same = one if other is two else 1.0
        stages = [scaled(n, b) for n, b in zip("abc", (other, same, same), strict=True)]
        assert found(stages, x) == Row(1, 1, 2)
    with pytest.raises(ValueError, match="no 2 equal blocks in a row"):
        found([scaled("a", one), scaled("b", two)], x)


def steered(name, by):
    """The identity, whose gradient is `by` times what it should be."""

    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, None), lambda _, g: (by * g,))

    def apply(params, state, x, *, key, train):
        return identity(x), state, {}

    return Stage(name, lambda key, spec: ({}, {}), apply)


def test_another_way_back_makes_another_block():
    x = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    assert found([steered("a", 2.0), steered("b", 2.0)], x) == Row(0, 1, 2)
    with pytest.raises(ValueError, match="no 2 equal blocks in a row"):
        found([steered("a", 1.0), steered("b", 2.0)], x)


@pytest.mark.parametrize("what", ["a loss of its own", "taps"])
def test_g_blocks_that_see_more_than_a_row_are_told(what):
    stages = bert(CONFIG)
    if what == "taps":
        with pytest.raises(ValueError, match="layer_0/ffn taps its gradient, as K-FAC"):
            found(stages, change=lambda params: with_taps(params, ".*kernel"))
        return
    stages = [with_loss(stage, lambda x, y: jnp.float32(0)) for stage in stages]
    with pytest.raises(ValueError, match=r"layer_0/ffn reports \['loss'\] of a whole"):
        found(stages)
