import jax
import jax.numpy as jnp
import pytest

from splitjax.core.stage import Stage, join, repeat
from splitjax.models.decoder import decoder
from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.pretrained import start
from splitjax.parallel.cost import block_costs, pieces


def dense(name, width, *, loop=0) -> Stage:
    """x @ w, whose operations are exactly 2 B I J."""

    def init(key, spec):
        return {"w": jax.random.normal(key, (spec.shape[-1], width))}, {}

    def apply(params, state, x, *, key, train):
        y = x @ params["w"]
        if loop:
            y = jax.lax.fori_loop(0, loop, lambda i, y: y * 2.0, y)
        return y, state, {}

    return Stage(name, init, apply)


def made(stages, x):
    return jax.eval_shape(lambda: join(stages).init(jax.random.key(0), x))


def test_products_are_counted_exactly():
    """Forward B I J products; backward as many for the weight and for the input."""
    stages, x = [dense("a", 8), dense("b", 3)], jnp.ones((4, 6))
    a, b = block_costs(stages, *made(stages, x), x)
    assert (a.forward_flops, a.backward_flops) == (2 * 4 * 6 * 8, 2 * 2 * 4 * 6 * 8)
    assert (b.forward_flops, b.backward_flops) == (2 * 4 * 8 * 3, 2 * 2 * 4 * 8 * 3)
    assert (a.parameter_bytes, a.input_bytes, a.residual_bytes) == (192, 96, 96)
    assert (b.parameter_bytes, b.input_bytes, b.residual_bytes) == (96, 128, 128)


def test_a_stack_is_counted_block_by_block():
    """As a scan it would be counted as one block."""
    block, x = dense("layer", 6), jnp.ones((4, 6))
    stack = [repeat(block, 3), dense("head", 2)]
    found = block_costs(stack, *made(stack, x), x)
    assert [each.name for each in found] == ["layer/0", "layer/1", "layer/2", "head"]
    assert {each.forward_flops for each in found[:3]} == {2 * 4 * 6 * 6}
    assert {each.parameter_bytes for each in found[:3]} == {4 * 6 * 6}
    assert [piece.row for piece in pieces([join(stack)])] == [0, 1, 2, None]


def test_equal_blocks_are_lowered_once(monkeypatch):
    lowered = []
    real = jax.stages.Traced.lower

    def lower(self, *args, **kwargs):
        lowered.append(self)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(jax.stages.Traced, "lower", lower)
    config = DecoderConfig(vocab=11, width=8, heads=2, kv_heads=1, layers=3, ffn=12)
    stages = decoder(config)
    spec = {
        "ids": jax.ShapeDtypeStruct((2, 5), jnp.int32),
        "mask": jax.ShapeDtypeStruct((2, 5), jnp.bool_),
    }
    params, state = jax.eval_shape(
        lambda: start(stages, {}, key=jax.random.key(0), spec=spec)
    )
    found = block_costs(stages, params, state, spec)
    assert len(found) == 9
    # Embedding, attention, feed-forward, norm and head, each forward and backward.
    assert len(lowered) == 10
    assert found[1].forward_flops == found[5].forward_flops
    head = found[-1]
    assert head.forward_flops == 2 * 2 * 5 * 8 * 11 and head.parameter_bytes == 0


def test_dropout_is_part_of_training():
    def apply(params, state, x, *, key, train):
        keep = jax.random.bernoulli(key, 0.5, x.shape) if train else True
        return jnp.where(keep, x, 0.0), state, {}

    drop = [Stage("drop", lambda key, spec: ({}, {}), apply)]
    none, x = {"drop": {}}, jnp.ones((4, 6))
    [on] = block_costs(drop, none, none, x)
    [off] = block_costs(drop, none, none, x, train=False)
    assert on.forward_flops > off.forward_flops
    assert on.residual_bytes - off.residual_bytes == 4 * 6  # the mask


def test_a_block_with_a_loop_is_refused():
    stages, x = [dense("a", 6, loop=5)], jnp.ones((4, 6))
    with pytest.raises(ValueError, match="block 'a' has a .*, whose body is counted"):
        block_costs(stages, *made(stages, x), x)
