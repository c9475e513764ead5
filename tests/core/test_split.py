"""`Split.value_and_grad` against plain autodiff; where the cut lies is in test_cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.codecs import quantize
from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.core.stage import with_loss
from splitjax.core.tree import spec_of
from splitjax.metrics.loss import squared_error
from splitjax.models.mlp import mlp

IDENTITY = Link(chain(), chain())
ROUGH = Link(chain(quantize(8)), chain(quantize(8, rounding="stochastic")))
PLACES = ("dense_0", "dense_1")
ROWS, WIDTH = 8, 6


def loss(y, target):
    value, _ = squared_error(y[:, 0], target)
    return value, {"rmse": jnp.sqrt(value)}


def build(places=PLACES, link=IDENTITY, frozen=0, stages=None):
    stages = stages or mlp([8, 8, 1], dropout=0.2, norm=True)
    return Split(cut(stages, after=places), (link,) * len(places), loss, frozen)


def data(seed=0):
    x = jax.random.normal(jax.random.key(seed), (ROWS, WIDTH))
    return x, {"y": jnp.sin(x).sum(-1), "n_valid": jnp.int32(ROWS - 1)}


def begin(split, seed=1):
    x, _ = data()
    params, state = jax.jit(lambda k: split.init(k, x))(jax.random.key(seed))
    return params, state, split.init_links(params, state, spec_of(x))


def close(a, b):
    def one(a, b):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)

    jax.tree.map(one, a, b)


def plain(split, params, state, x, target, key):
    """The whole model by autodiff alone; what is frozen runs as in evaluation."""

    def run(whole):
        y, new, extra = x, [], 0.0
        for index, (segment, p, s) in enumerate(
            zip(split.cut.segments, split.cut.partition(whole), state, strict=True)
        ):
            train = index >= split.frozen
            y, moved, aux = segment.apply(p, s, y, key=key, train=train)
            new.append(moved)
            extra += aux.get("loss", 0.0)
        return loss(y, target)[0] + extra, (split.cut.merge(new), y)

    return jax.jit(jax.value_and_grad(run, has_aux=True))(split.cut.merge(params))


def test_it_gives_loss_gradient_state_and_output(key):
    split = build()
    x, target = data()
    params, state, links = begin(split)
    (value, extra), grads = jax.jit(split.value_and_grad)(
        params, state, links, x, target, key=key
    )
    (want, (new, y)), wanted = plain(split, params, state, x, target, key)
    close((value, split.cut.merge(grads)), (want, wanted))
    close((split.cut.merge(extra["state"]), extra["out"]), (new, y))
    close(extra["metrics"]["rmse"], jnp.sqrt(want))
    assert len(split) == len(grads) == 3


def test_edges_are_lanes_of_a_vmap(key):
    """Each with its own parameters, codec state, batch and random numbers."""
    split = build(link=ROUGH)
    lanes = [(*begin(split, seed), *data(seed)) for seed in range(3)]
    keys = jax.random.split(key, 3)

    def run(params, state, links, x, target, key):
        (value, extra), grads = split.value_and_grad(
            params, state, links, x, target, key=key
        )
        return value, grads, extra["links"], extra["state"]

    one = jax.jit(run)
    loop = [one(*lane, k) for lane, k in zip(lanes, keys, strict=True)]
    stack = jax.tree.map(lambda *a: jnp.stack(a), *lanes)
    mapped = jax.jit(jax.vmap(run))(*stack, keys)
    for lane in range(3):
        got = jax.tree.map(lambda a, lane=lane: a[lane], mapped)
        np.testing.assert_allclose(got[0], loop[lane][0], rtol=1e-3)
        # A last bit may take another code of the 8-bit quantizer: 1/255 of a range.
        for a, b in zip(*map(jax.tree.leaves, (got[1], loop[lane][1])), strict=True):
            assert np.abs(a - b).max() <= 0.02 * max(np.abs(b).max(), 1e-3)
    assert len({float(v) for v in mapped[0]}) == 3


@pytest.mark.parametrize("frozen", [1, 2])
def test_frozen_segments_get_no_gradient_and_no_message(frozen, key):
    sent = []

    def spy(number):
        def encode(g, state, ctx):
            sent.append(number)
            return g, state

        return Link(chain(), dataclasses.replace(chain(), encode=encode))

    split = build()
    split = Split(split.cut, (spy(0), spy(1)), loss, frozen)
    x, target = data()
    params, state, links = begin(split)
    (value, extra), grads = jax.jit(split.value_and_grad)(
        params, state, links, x, target, key=key
    )
    (want, (new, _)), wanted = plain(split, params, state, x, target, key)
    close(value, want)
    assert grads[:frozen] == (None,) * frozen
    close(grads[frozen:], split.cut.partition(wanted)[frozen:])
    # Their statistics stay, too, and nothing is sent back to them.
    close(split.cut.merge(extra["state"]), new)
    jax.tree.map(np.testing.assert_array_equal, extra["state"][0], state[0])
    assert sent == [n for n in (1, 0) if n >= frozen]


def test_local_losses_of_every_segment_are_in_loss_and_gradient(key):
    first, second, head = mlp([8, 8, 1])
    stages = (
        with_loss(first, lambda x, y: 0.1 * jnp.mean(y**2)),
        with_loss(second, lambda x, y: 0.1 * jnp.mean(y**2)),
        head,
    )
    split = build(stages=stages)
    x, target = data()
    params, state, links = begin(split)
    run = jax.jit(split.value_and_grad)
    (value, _), grads = run(params, state, links, x, target, key=key)
    (want, _), wanted = plain(split, params, state, x, target, key)
    close((value, split.cut.merge(grads)), (want, wanted))
    bare = jax.jit(build(stages=(first, second, head)).value_and_grad)
    assert value > bare(params, state, links, x, target, key=key)[0][0]


def test_a_weight_scales_the_gradient_and_not_the_loss(key):
    split = build()
    x, target = data()
    params, state, links = begin(split)

    @jax.jit
    def run(weight):
        m, visits = x, []
        for i in range(3):
            visit = split.forward(
                i, params[i], state[i], m, links=links, key=key, target=target
            )
            visits.append(visit)
            m = visit.out
        gradient, grads = None, []
        for i in (2, 1, 0):
            own, gradient = split.pull(
                i, params[i], visits[i].residuals, gradient, weight
            )
            grads.append(own)
        return visits[-1].loss, grads

    one, quarter = run(jnp.float32(1)), run(jnp.float32(0.25))
    assert one[0] == quarter[0]
    close(optax.tree.scale(0.25, one[1]), quarter[1])


def test_without_a_target_there_is_no_loss():
    split = build(("dense_0",))
    x, _ = data()
    params, state, links = begin(split)
    how = {"links": links, "key": None, "train": False}
    m = split.forward(0, params[0], state[0], x, **how)
    made = split.forward(1, params[1], state[1], m.out, **how)
    assert made.loss == 0 and made.out.shape == (ROWS, 1) and made.metrics == {}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_links_is_refused(count):
    made = cut(mlp([8, 8, 1]), after=PLACES)
    with pytest.raises(ValueError, match=f"have 2 cuts, but there are {count} links"):
        Split(made, (IDENTITY,) * count, loss)


@pytest.mark.parametrize("frozen", [-1, 3])
def test_not_all_segments_can_be_frozen(frozen):
    with pytest.raises(ValueError, match=f"frozen={frozen}: at most 2"):
        build(frozen=frozen)
