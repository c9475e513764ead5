import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from splitjax.core.stage import join, repeat
from splitjax.metrics.memory import (
    NOT_COUNTED,
    Memory,
    device_bytes,
    hold,
    predict,
    table,
)
from splitjax.models import bert
from splitjax.models.bert_config import BertConfig
from splitjax.parallel.mesh import make_cloud_mesh
from splitjax.parallel.rules import layout
from splitjax.parallel.scale import Scale, checkpointed
from splitjax.parallel.zero import State, make_trainer

B, T, D, F, L, H = 32, 32, 64, 256, 4, 4
CONFIG = BertConfig(
    vocab=64,
    width=D,
    heads=H,
    layers=1,
    ffn=F,
    positions=T,
    dropout=0.0,
    attention_dropout=0.0,
)
BLOCK = join(bert.bert(CONFIG)[1:], "block")


def step_of(scale: Scale, count: int, *, loop: bool = True, size: int = B):
    """A prediction and a compiled training step of BERT blocks, in a loop or not."""
    apart = join(bert.bert(dataclasses.replace(CONFIG, layers=L))[1:], "blocks")
    model = checkpointed(repeat(BLOCK, L) if loop else apart, scale)
    mesh = make_cloud_mesh(scale.mesh, devices=jax.devices()[:count])
    rows = NamedSharding(mesh, P("data"))
    x = {
        "h": jax.ShapeDtypeStruct((size, T, D), jnp.float32, sharding=rows),
        "mask": jax.ShapeDtypeStruct((size, T), bool, sharding=rows),
    }
    params, state = jax.eval_shape(model.init, jax.random.key(0), x)

    def loss(params, x):
        y, _, _ = model.apply(params, state, x, key=None, train=False)
        return jnp.square(y["h"]).mean()

    tx = optax.adam(1e-3)
    stacked = ".*" if loop else ""
    made = make_trainer(loss, tx, params, mesh, scale, stacked=stacked)
    specs = State(params, jax.eval_shape(tx.init, params), None)
    specs = jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place),
        specs,
        made.places,
    )
    program = made.step.lower(specs, x).compile()
    places = layout(params, mesh, stacked=stacked)[0] if scale.zero == 3 else None
    whole = places and jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place),
        params,
        places,
    )
    return predict(loss, specs.params, specs.opt, x, whole=whole), program


def check(memory: Memory, program) -> None:
    arguments, temporary = hold(memory, program)
    assert arguments.predicted_bytes == arguments.measured_bytes
    ratio = temporary.predicted_bytes / temporary.measured_bytes
    assert 0.8 < ratio < 1.2, table(memory, (arguments, temporary))


@pytest.mark.parametrize("checkpoint", ["none", "full"])
def test_a_step_on_eight_devices_is_as_predicted(checkpoint):
    scale = Scale(mesh="data=8", zero=1, checkpoint=checkpoint)
    memory, program = step_of(scale, 8)
    check(memory, program)
    numbers = L * (4 * D * D + 2 * D * F + F + 9 * D)
    assert memory.params == memory.gradients == 4 * numbers
    assert memory.moments == 2 * 4 * numbers // 8 + 4  # and the count of steps
    assert memory.batch == (4 * D + 1) * B * T // 8
    if checkpoint == "full":  # the inputs of the blocks, and one of all blocks' rest
        assert memory.kept >= 4 * L * B * T * D // 8 and memory.again > memory.kept


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["none", "dots", "full"])
def test_a_step_on_one_device_is_as_predicted(checkpoint):
    check(*step_of(Scale(mesh="data=1", checkpoint=checkpoint), 1))


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 3])
def test_blocks_one_after_the_other_give_back_what_they_kept(zero):
    memory, program = step_of(Scale(mesh="data=8", zero=zero), 8, loop=False, size=8)
    check(memory, program)
    assert memory.temporary < memory.gathered + memory.gradients + memory.kept


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_an_array_that_is_kept_twice_counts_once_and_an_input_not():
    def loss(w, x):
        y = jnp.tanh(x @ w)  # the gradients of both need y, that of w needs x
        return (y * y).sum()

    found = predict(loss, spec(3, 5), (), spec(4, 3))
    assert found.kept == 4 * 4 * 5 * 2  # y and 1 - y^2


def test_what_is_computed_again_counts_once_however_often_it_is():
    def block(x, w):
        return jnp.sin(jnp.sin(x * w)), ()

    def loss(again):
        run = jax.checkpoint(block) if again else block

        def total(w, x):
            return jax.lax.scan(run, x, w)[0].sum()

        return predict(total, spec(6, 8), (), spec(8))

    plain, again = loss(False), loss(True)
    # Of each of six turns x, and the cosines of both sines; or x alone, and a turn's.
    assert plain.kept == 6 * 3 * 8 * 4 and plain.again == 0
    assert again.kept == 6 * 8 * 4 and again.again == 2 * 8 * 4


def test_parts_in_one_body_are_added_and_bodies_are_not():
    part = jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)))

    def loss(w, x):
        x = part(part(x * w))  # of each the cosines of both sines
        x = jax.lax.scan(lambda x, _: (part(x), ()), x, None, length=3)[0]
        return x.sum()

    assert predict(loss, spec(8), (), spec(8)).again == 2 * 2 * 8 * 4


def test_parts_of_a_mesh_and_bytes_of_narrow_leaves():
    mesh = make_cloud_mesh("data=4,tensor=2")
    over = NamedSharding(mesh, P("data", "tensor"))
    tree = {
        "w": jax.ShapeDtypeStruct((8, 6), jnp.bfloat16, sharding=over),
        "ids": spec(3, dtype=jnp.int32),
    }
    assert device_bytes(tree) == 2 * 3 * 2 + 12


def test_the_report_says_what_it_does_not_count():
    text = table(Memory(1, 2, 3, 4, 5, 6, 14, 0))
    assert all(f"not counted: {what}" in text for what in NOT_COUNTED)
    memory = Memory(1, 2, 3, 4, 5, 6, 14, 7)
    assert memory.arguments == 6 and memory.temporary == 21


def test_g_a_backend_that_does_not_tell():
    class Silent:
        def memory_analysis(self):
            return None

    with pytest.raises(ValueError, match="does not tell"):
        hold(Memory(*range(8)), Silent())
