"""The pipeline of many programs: one order, one gradient, whatever the stages are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from splitjax.core.keys import fold
from splitjax.core.message import tree_bytes
from splitjax.core.stage import Stage, join, repeat, with_apply, with_loss
from splitjax.core.tree import spec_of
from splitjax.models.decoder import decoder
from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.pretrained import start
from splitjax.parallel.cost import block_costs
from splitjax.parallel.mesh import make_cloud_mesh
from splitjax.parallel.mpmd import mpmd
from splitjax.parallel.place import Place
from splitjax.parallel.schedule import KINDS
from splitjax.parallel.timeline import simulate

MICRO, ROWS, WIDTH = 4, 4, 6


def layer(name, rate=0.2) -> Stage:
    """Dense, tanh and dropout; it counts the batches that it has seen."""

    def init(key, spec):
        shape = (spec["h"].shape[-1], WIDTH)
        return {"w": 0.5 * jax.random.normal(key, shape)}, {"seen": jnp.int32(0)}

    def apply(params, state, x, *, key, train):
        h = jnp.tanh(x["h"] @ params["w"])
        if train:
            h = jnp.where(jax.random.bernoulli(key, 1 - rate, h.shape), h, 0.0)
        return {**x, "h": h}, {"seen": state["seen"] + 1}, {}

    return Stage(name, init, apply)


def loss(y, target):
    error = jnp.square(y["h"] - target).mean(-1) * y["mask"].astype(jnp.float32)
    return error.mean(), {"largest": error.max()}


STAGES = [layer(f"layer_{i}") for i in range(7)]
MODEL = join([*STAGES[:3], with_loss(STAGES[3], lambda x, y: jnp.abs(y["h"]).mean())])
MODEL = join([*MODEL.stages, *STAGES[4:]])
STAGES = MODEL.stages


@pytest.fixture(scope="module")
def batches():
    def one(number):
        h, y = (
            jax.random.normal(fold(jax.random.key(3), number, name), (ROWS, WIDTH))
            for name in "hy"
        )
        return {"h": h, "mask": jnp.arange(ROWS) < ROWS - number % 2}, y

    return [one(number) for number in range(MICRO)]


@pytest.fixture(scope="module")
def made(batches):
    return MODEL.init(jax.random.key(0), spec_of(batches[0][0]))


def alone(model, params, state, batches, key, weights=None, loss=loss):
    """The same step on one device, micro-batch after micro-batch."""
    weights = weights or [1 / len(batches)] * len(batches)

    @jax.jit
    def one(params, state, x, target, key):
        def run(params):
            y, new, aux = model.apply(params, state, x, key=key, train=True)
            value, _ = loss(y, target)
            return value + aux.get("loss", 0.0), new

        return jax.value_and_grad(run, has_aux=True)(params)

    total, value = jax.tree.map(jnp.zeros_like, params), 0.0
    for number, (x, target) in enumerate(batches):
        (part, state), grads = one(params, state, x, target, fold(key, number))
        value += weights[number] * float(part)
        total = jax.tree.map(lambda t, g, w=weights[number]: t + w * g, total, grads)
    return value, total, state


@pytest.fixture(scope="module")
def wanted(made, batches):
    return alone(MODEL, *made, batches, jax.random.key(5))


def close(found, wanted):
    """float32 sums of the same numbers in another order: 1e-6."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5),
        found,
        wanted,
    )


def pipeline(stages=4, kind="1f1b", recompute=None, cuts=None, homes=None):
    cuts = {1: (), 2: (3,), 3: (2, 5), 4: (2, 3, 5)}[stages] if cuts is None else cuts
    homes = jax.devices()[:stages] if homes is None else homes
    how = dict(cuts=cuts, homes=homes, micro=MICRO, kind=kind, recompute=recompute)
    return mpmd(STAGES, loss, **how)


def step(pipe, made, batches, **kwargs):
    params, state = pipe.put(*made)
    key = jax.random.key(5)
    (value, extra), grads = pipe.value_and_grad(
        params, state, batches, key=key, **kwargs
    )
    return value, extra, grads


@pytest.fixture(scope="module")
def mixed():
    """Of 2, 1, 2 and 2 blocks 2, 1, 1 and 0 recomputed: all, one of two, none."""
    return pipeline(recompute=[2, 1, 1, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_schedule_gives_one_gradient(kind, mixed, made, batches, wanted):
    pipe = mixed.ordered(kind)
    value, extra, grads = step(pipe, made, batches)
    assert extra["done"] == pipe.lists
    assert extra["in_flight"] == simulate(pipe.lists).in_flight
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    close(pipe.gathered(grads), wanted[1])
    close(pipe.gathered(extra["state"]), wanted[2])
    assert all(extra["finite"])


def test_a_schedule_has_its_own_order(mixed):
    lists = {kind: mixed.ordered(kind).lists for kind in KINDS}
    assert len(set(lists.values())) == len(KINDS)
    again = [[op for op in ops if op.kind == "R"] for ops in lists["shifted"]]
    assert [len(ops) for ops in again] == [MICRO, MICRO, MICRO, 0]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "stages", [2, pytest.param(1, marks=SLOW), pytest.param(3, marks=SLOW)]
)
def test_chance_does_not_depend_on_the_number_of_stages(stages, made, batches, wanted):
    """Dropout is folded by micro-batch and stage name, in the repetition too."""
    recompute = {1: [3], 2: [0, 2], 3: None}[stages]
    pipe = pipeline(stages, recompute=recompute)
    value, _, grads = step(pipe, made, batches)
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    close(pipe.gathered(grads), wanted[1])


def test_each_stage_works_on_its_own_device(mixed, made, batches):
    _, extra, grads = step(mixed, made, batches)
    for device, own in zip(jax.devices(), mixed.parts, strict=False):
        for tree in (grads, extra["state"]):
            for index in own:
                assert all(
                    a.devices() == {device} for a in jax.tree.leaves(tree[index])
                )
    assert [flag.devices() for flag in extra["finite"]] == [
        {device} for device in jax.devices()[:4]
    ]


@pytest.mark.parametrize("count", range(5))
def test_what_is_recomputed_is_not_held(count, batches):
    """Of 4 blocks; what is held is, to the byte, what the cost of blocks foretells."""
    stages = [layer(f"layer_{i}") for i in range(5)]
    x = spec_of(batches[0][0])
    made = jax.eval_shape(lambda: join(stages).init(jax.random.key(0), x))
    how = dict(cuts=(4,), homes=jax.devices()[:2], micro=2, recompute=[count, 0])
    pipe = mpmd(stages, loss, **how)
    params, state = (pipe.cut.partition(tree) for tree in made)
    own = pipe.parts[0]

    def held(params, state, x):
        run = pipe.programs[0]["F"]
        return run(params, state, x, None, jax.random.key(0), 0, train=True)[1]

    mine = [tuple(tree[index] for index in own) for tree in (params, state)]
    found = tree_bytes(jax.eval_shape(held, *mine, x))
    blocks = block_costs(stages, *made, x)
    assert found == sum(block.residual_bytes for block in blocks[count:4])
    assert (found == 0) == (count == 4)


def test_weights_are_those_of_the_micro_batches(mixed, made, batches):
    weights = [0.4, 0.0, 0.35, 0.25]
    value, grad, _ = alone(MODEL, *made, batches, jax.random.key(5), weights)
    found, extra, grads = step(mixed, made, batches, weights=weights)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    close(mixed.gathered(grads), grad)
    want = 0.0
    for number, (x, target) in enumerate(batches):
        key = fold(jax.random.key(5), number)
        y, _, _ = MODEL.apply(*made, x, key=key, train=True)
        want += weights[number] * float(loss(y, target)[1]["largest"])
    np.testing.assert_allclose(extra["metrics"]["largest"], want, rtol=1e-5)


def test_a_nan_in_one_stage_is_seen_by_all(mixed, made, batches):
    params, state = made
    bad = {**params, "layer_3": {"w": params["layer_3"]["w"].at[0, 0].set(jnp.nan)}}
    value, extra, _ = step(mixed, (bad, state), batches)
    assert np.isnan(value) and [bool(flag) for flag in extra["finite"]] == [False] * 4


def test_a_nan_that_only_a_gradient_has_is_seen_by_all(made, batches):
    """The square root's slope at 0 is infinite; the loss is not."""
    root = Stage(
        "root",
        lambda key, spec: ({"k": jnp.float32(1)}, {}),
        lambda p, s, x, *, key, train: (
            {**x, "h": x["h"] + jnp.sqrt(p["k"] * 0.0 * x["h"] ** 2)},
            s,
            {},
        ),
    )
    stages = [STAGES[0], root, STAGES[1]]
    model = join(stages)
    params, state = model.init(jax.random.key(0), spec_of(batches[0][0]))
    pipe = mpmd(stages, loss, cuts=(1,), homes=jax.devices()[:2], micro=MICRO)
    value, extra, _ = step(pipe, (params, state), batches)
    assert np.isfinite(value) and not any(extra["finite"])


def test_a_stack_may_be_cut_inside(batches):
    """In three parts, two of them of one stage; each block tells a size of its own."""
    block = layer("block")

    def apply(params, state, x, **kwargs):
        y, state, _ = block.apply(params, state, x, **kwargs)
        return y, state, {"size": jnp.square(y["h"]).mean()}

    stack = [repeat(with_apply(block, apply), 4), layer("last")]
    model, batches = join(stack), batches[:2]
    made = model.init(jax.random.key(0), spec_of(batches[0][0]))
    value, grad, state = alone(model, *made, batches, jax.random.key(5))
    how = dict(cuts=(3,), homes=jax.devices()[:2], micro=2, recompute=[1, 0])
    pipe = mpmd(stack, loss, **how)
    found, extra, grads = step(pipe, made, batches)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    close(pipe.gathered(grads), grad)
    close(pipe.gathered(extra["state"]), state)
    sizes = [
        model.apply(*made, x, key=fold(jax.random.key(5), number), train=True)[2]
        for number, (x, _) in enumerate(batches)
    ]
    want = sum(aux["block"]["size"] for aux in sizes) / 2
    assert want.shape == (4,)
    np.testing.assert_allclose(extra["metrics"]["block/size"], want, rtol=1e-5)


def test_g_a_tie_to_a_stack_that_is_cut_is_refused():
    """Of the stack the reader would see the rows of its own segment alone."""

    def read(params, state, x, *, key, train, tied):
        return {**x, "h": x["h"] * tied["block"]["w"].sum()}, state, {}

    back = Stage("back", lambda key, spec: ({}, {}), read, reads=("block",))
    stack = [repeat(layer("block"), 4), back]
    how = dict(homes=jax.devices()[:2], micro=2)
    with pytest.raises(ValueError, match="'back' reads .* a stack that is cut"):
        mpmd(stack, loss, cuts=(2,), **how)
    assert mpmd(stack, loss, cuts=(4,), **how).lent[-1] == ("block",)


def next_token(y, target):
    logits = jax.nn.log_softmax(y)
    return -jnp.take_along_axis(logits, target[..., None], -1).mean(), {}


@pytest.mark.parametrize(
    ("cuts", "recompute"),
    [((2,), None), pytest.param((1, 3), [1, 2, 1], marks=SLOW, id="again")],
)
def test_a_tied_embedding_gets_both_gradients(cuts, recompute):
    config = DecoderConfig(vocab=11, width=8, heads=2, kv_heads=1, layers=1, ffn=12)
    stages = decoder(config)

    def one(number):
        ids = jax.random.randint(jax.random.key(number), (2, 6), 0, 11)
        return {"ids": ids[:, :5], "mask": jnp.ones((2, 5), bool)}, ids[:, 1:]

    batches = [one(number) for number in range(2)]
    spec = spec_of(batches[0][0])
    made = start(stages, {}, key=jax.random.key(0), spec=spec)
    key = jax.random.key(5)
    value, grad, _ = alone(join(stages), *made, batches, key, loss=next_token)
    homes = jax.devices()[: len(cuts) + 1]
    how = dict(cuts=cuts, homes=homes, micro=2, recompute=recompute)
    pipe = mpmd(stages, next_token, **how)
    found, _, grads = step(pipe, made, batches)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    close(pipe.gathered(grads), grad)
    assert pipe.lent[-1] == ("embed",)
    lone = grads[0]["embed"]["word"]["embedding"]
    assert lone.devices() == {jax.devices()[0]} and float(jnp.abs(lone).sum()) > 0


def test_stages_on_meshes_of_their_own(made, batches, wanted):
    """One with its kernels parted, one with its rows."""
    devices = jax.devices()

    def columns(mesh, params):
        spec = PartitionSpec(None, "tensor")
        return jax.tree.map(lambda leaf: NamedSharding(mesh, spec), params)

    homes = [
        Place(make_cloud_mesh("tensor=2", devices=devices[2:4]), columns),
        make_cloud_mesh("data=4", devices=devices[4:8]),
    ]
    pipe = pipeline(2, homes=homes, recompute=[1, 0])
    value, _, grads = step(pipe, made, batches)
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    close(pipe.gathered(grads), wanted[1])
    assert grads[-1]["layer_6"]["w"].sharding.device_set == set(devices[4:8])


def test_rows_that_a_mesh_cannot_part_are_refused(made, batches):
    odd = [(jax.tree.map(lambda a: a[:3], x), y[:3]) for x, y in batches]
    pipe = pipeline(1, homes=[make_cloud_mesh("data=2", devices=jax.devices()[:2])])
    with pytest.raises(ValueError, match="h has 3 rows, .* 'data' of 2"):
        step(pipe, made, odd)


def test_a_wrong_number_of_batches_is_refused(mixed, made, batches):
    with pytest.raises(ValueError, match="4 micro-batches: 3 batches"):
        step(mixed, made, batches[:3])
    with pytest.raises(ValueError, match="4 batches and 1 weights"):
        step(mixed, made, batches, weights=[1.0])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(cuts=(3, 2)), "cuts=.*numbers that increase, from 1 to 6"),
        (dict(cuts=(3, 7)), "from 1 to 6 for these 7 blocks"),
        (dict(cuts=(0, 3)), "from 1 to 6"),
        (dict(recompute=[1, 1]), "a number for each of the 3 stages"),
        (dict(recompute=[3, 0, 0]), r"up to its \[2, 3, 2\] blocks"),
        (dict(homes=jax.devices()[:2]), "3 stages need 3 places, not 2"),
        (dict(homes=jax.devices()[:1] * 3), "two stages share"),
        (dict(kind="last"), "no stage recomputes"),
        (dict(kind="last", recompute=[1, 1, 1]), "the last number of `recompute`"),
    ],
)
def test_a_wrong_pipeline_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        pipeline(3, **how)


def test_a_last_stage_that_recomputes_is_not_reordered():
    with pytest.raises(ValueError, match="the last number of `recompute`"):
        pipeline(2, recompute=[1, 1]).ordered("shifted")
