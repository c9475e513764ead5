"""What every run of an algorithm must obey, over real frames."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.algorithms.split import split_learning
from splitjax.codecs import binary, c3, delta, quantize, scaled_sign
from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.core.stage import with_loss
from splitjax.metrics.loss import squared_error
from splitjax.models.mlp import mlp
from splitjax.optim.clip import clip_by_global_norm
from splitjax.runtime.local import Local

IDENTITY = Link(chain(), chain())
ROUGH = Link(chain(quantize(8)), chain(quantize(8, rounding="stochastic")))
SHAPES = {
    "unsplit": (),
    "plain": ("dense_0",),
    "u": ("dense_0", "head"),
    "u with a head": ("dense_0", "dense_1"),
    "four": ("dense_0", "dense_1", "dense_2"),
}


def loss(y, target):
    return squared_error(y[:, 0], target)


def batches(count, rows=8):
    made = []
    for number in range(count):
        x = np.random.default_rng(number).normal(size=(rows, 6)).astype(np.float32)
        valid = rows - (number % 3 == 2)
        target = {"y": np.sin(x).sum(-1), "n_valid": np.int32(valid)}
        made.append({"x": x, "target": target, "weight": np.float32(1)})
    return made


def weighted(group):
    total = sum(int(b["target"]["n_valid"]) for b in group)
    return [{**b, "weight": np.float32(b["target"]["n_valid"] / total)} for b in group]


def build(places, *, link=IDENTITY, micro=1, clip=None, exact=True, frozen=0, **kw):
    stages = mlp([8, 8, 8, 1], **{"dropout": 0.2, "norm": True, **kw})
    split = Split(cut(stages, after=places), (link,) * len(places), loss, frozen)
    tx = optax.sgd(0.05, momentum=0.9)
    if clip:
        tx = optax.chain(clip_by_global_norm(clip), tx)
    algorithm = split_learning(split, tx, micro=micro, exact_norm=exact and bool(clip))
    params, state = jax.jit(split.init)(jax.random.key(1), batches(1)[0]["x"])
    driver = Local(algorithm, jax.random.key(2))
    return driver, driver.start(params, state, batches(1)[0]["x"])


def train(driver, run, groups, **kwargs):
    losses = []
    for group in groups:
        run, metrics = driver.step(run, weighted(group), **kwargs)
        losses.append(float(metrics["loss"]))
    return run, losses


def final(driver, run):
    return driver.algorithm.merge(*run[:3])


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, rtol=2e-5):
    def one(a, b):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)

    jax.tree.map(one, a, b)


@pytest.mark.parametrize(
    ("shape", "clip"),
    [
        ("plain", None),
        ("plain", 0.5),
        ("u", 0.5),
        ("u with a head", None),
        ("four", 0.5),
    ],
)
def test_split_training_equals_unsplit_training(shape, clip):
    groups = [[b] for b in batches(3)]
    driver, run = build((), clip=clip)
    run, losses = train(driver, run, groups)
    other, run2 = build(SHAPES[shape], clip=clip)
    run2, losses2 = train(other, run2, groups)
    # XLA fuses other programs otherwise: last bits differ, and grow over three steps.
    close(final(driver, run), final(other, run2))
    np.testing.assert_allclose(losses, losses2, rtol=1e-5)
    assert losses[0] == losses2[0]


FUSED = {
    "floats": IDENTITY,
    "quantize": Link(quantize(8), quantize(8)),
    "c3": Link(chain(c3(4, keys="unitary"), quantize(8)), quantize(8)),
    "binary": Link(binary(), scaled_sign()),
    "delta": Link(delta(quantize(4, power_of_two=True)), quantize(8)),
}


@pytest.mark.parametrize(
    "name",
    [
        "floats",
        "quantize",
        "binary",
        pytest.param("c3", marks=pytest.mark.slow),
        pytest.param("delta", marks=pytest.mark.slow),
    ],
)
def test_two_parties_over_frames_equal_one_program(name):
    """All codecs within one jitted loss, or bytes between two vjps: 20 steps, 1e-6."""
    stages = mlp([8, 8, 1])
    split = Split(cut(stages, after="dense_0"), (FUSED[name],), loss)
    tx, again = optax.sgd(0.05, momentum=0.9), name == "delta"
    data = [b for [b] in map(weighted, [[b] for b in batches(20)])]
    data = [{**(data[0] if again else b), "ids": np.arange(8)} for b in data]
    x = data[0]["x"]
    params, state = jax.jit(split.init)(jax.random.key(1), x)
    driver = Local(split_learning(split, tx), jax.random.key(2), examples=8)
    run = driver.start(params, state, x)

    @jax.jit
    def fused(params, state, links, opt, x, target):
        (value, extra), grads = split.value_and_grad(
            params, state, links, x, target, ids=jnp.arange(8)
        )
        updates, opt = tx.update(grads, opt)
        params = optax.apply_updates(params, updates)
        return value, params, extra["state"], extra["links"], opt

    links, opt = split.init_links(params, state, x), tx.init(params)
    for batch in data:
        run, metrics = driver.step(run, [batch])
        value, params, state, links, opt = fused(
            params, state, links, opt, batch["x"], batch["target"]
        )
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    ours, theirs = final(driver, run)[0], split.cut.merge(params)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_per_party_norms_differ_from_the_exact_one():
    groups = [[b] for b in batches(4)]
    results = []
    for exact in (True, False):
        driver, run = build(("dense_0",), clip=0.05, exact=exact)
        run, _ = train(driver, run, groups)
        results.append(jax.tree.leaves(final(driver, run)))
    assert any((a != b).any() for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("shape", "clip"),
    [("plain", 0.5), pytest.param("u with a head", None, marks=pytest.mark.slow)],
)
def test_micro_batches_in_flight_equal_one_by_one_to_the_bit(shape, clip):
    made = batches(6)
    groups = [made[:3], made[3:]]
    results = []
    driver, start = build(SHAPES[shape], link=ROUGH, micro=3, clip=clip)
    for in_flight in (1, 2, 3):
        # A step uses up the state that it is given.
        own = {name: getattr(start, name) for name in ("edge", "slot")}
        run = start._replace(**jax.tree.map(jnp.copy, own))
        run, losses = train(driver, run, groups, in_flight=in_flight)
        results.append((run, losses))
    for run, losses in results[1:]:
        assert losses == results[0][1]
        equal(run, results[0][0])


def test_micro_batches_equal_the_undivided_batch():
    made = batches(4)
    joined = {
        "x": jnp.concatenate([b["x"][: b["target"]["n_valid"]] for b in made]),
        "target": {
            "y": np.concatenate(
                [b["target"]["y"][: b["target"]["n_valid"]] for b in made]
            ),
        },
    }
    joined["target"]["n_valid"] = np.int32(len(joined["target"]["y"]))
    driver, run = build(("dense_0",), dropout=0.0, norm=False)
    run, losses = train(driver, run, [[joined]])
    other, run2 = build(("dense_0",), micro=4, dropout=0.0, norm=False)
    run2, losses2 = train(other, run2, [made])
    np.testing.assert_allclose(losses, losses2, rtol=1e-6)
    close(final(driver, run), final(other, run2), rtol=1e-6)


def test_hops_do_not_depend_on_frames():
    groups = [[b] for b in batches(3)]
    results = []
    for frames in (True, False):
        driver, run = build(("dense_0",), link=ROUGH)
        driver.frames = frames
        results.append(train(driver, run, groups))
    assert results[0][1] == results[1][1]
    equal(results[0][0], results[1][0])


def test_a_frozen_edge_gets_no_gradient_and_stays():
    groups = [[b] for b in batches(3)]
    driver, run = build(("dense_0",), frozen=1)
    before = jax.tree.map(np.array, final(driver, run)[0])
    run, _ = train(driver, run, groups)
    after = final(driver, run)[0]
    equal(before["dense_0"], after["dense_0"])
    assert any(
        (a != b).any()
        for a, b in zip(
            jax.tree.leaves(before["head"]), jax.tree.leaves(after["head"]), strict=True
        )
    )
    assert driver.meter.totals(kind="train")["bytes_down"] == 0


def test_labels_stay_on_the_edge_in_the_u_shape():
    sent = []
    for places in (("dense_0",), ("dense_0", "head")):
        driver, run = build(places)
        ship = driver._ship

        def spy(tree, *place, ship=ship, places=places, **more):
            sent.append((places, place[1], tree))
            return ship(tree, *place, **more)

        driver._ship = spy
        train(driver, run, [[batches(1)[0]]])
    plain = [
        set(tree) for places, way, tree in sent if len(places) == 1 and way == "up"
    ]
    ushape = [set(tree) for places, _, tree in sent if len(places) == 2 and tree]
    assert plain == [{"m", "target"}]
    assert set.union(*ushape) == {"m", "g"}


@pytest.mark.parametrize("shape", ["plain", "u with a head"])
def test_predicting_through_the_cut_learns_nothing(shape):
    x = batches(1)[0]["x"]
    driver, run = build(())
    other, run2 = build(SHAPES[shape])
    before = jax.tree.map(np.asarray, run2)
    np.testing.assert_array_equal(driver.predict(run, x), other.predict(run2, x))
    equal(before, run2)


def test_local_losses_are_pulled_on_both_sides():
    first, *rest = mlp([8, 8, 8, 1])
    first = with_loss(first, lambda x, y: 0.1 * jnp.mean(y**2))
    last = with_loss(rest[1], lambda x, y: 0.1 * jnp.mean(y**2))
    stages = (first, rest[0], last, rest[2])
    results = []
    for places in ((), ("dense_0", "head")):
        split = Split(cut(stages, after=places), (IDENTITY,) * len(places), loss)
        algorithm = split_learning(split, optax.sgd(0.1))
        x = batches(1)[0]["x"]
        driver = Local(algorithm, jax.random.key(2))
        run = driver.start(*split.init(jax.random.key(1), x), x)
        run, losses = train(driver, run, [[b] for b in batches(3)])
        results.append((final(driver, run), losses))
    for params, losses in results[1:]:
        np.testing.assert_allclose(losses, results[0][1], rtol=1e-6)
        close(params, results[0][0], rtol=1e-6)


def test_owners_must_take_turns():
    stages = mlp([8, 8, 1])
    made = cut(stages, after=("dense_0", "dense_1"), owners=("edge", "cloud", "cloud"))
    with pytest.raises(ValueError, match="in turn"):
        split_learning(Split(made, (IDENTITY,) * 2, loss), optax.sgd(1.0))


def test_values_that_codecs_replace_are_counted_in_every_tick():
    """A loss that stays finite does not tell of them; no later tick may hide them."""
    driver, start = build(("dense_0",), link=ROUGH, micro=2, dropout=0.0, norm=False)
    good, bad, worse = batches(1)[0], batches(1)[0], batches(1)[0]
    bad["x"][3, 0] = np.nan
    worse["target"]["y"][5] = 3e38
    for first, counts in ((good, (0, 0)), (bad, (8, 0)), (worse, (0, 8))):
        own = {name: getattr(start, name) for name in ("edge", "slot")}
        run = start._replace(**jax.tree.map(jnp.copy, own))  # a step uses it up
        _, found = driver.step(run, weighted([first, good]))
        names = ("link_0/nonfinite", "link_0/backward_nonfinite")
        assert tuple(int(found[name]) for name in names) == counts
        assert first is worse or np.isfinite(found["loss"])
