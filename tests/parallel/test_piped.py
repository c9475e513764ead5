import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.algorithms.split import split_learning
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.core.stage import Stage
from splitjax.core.tree import flat, spec_of
from splitjax.models.mlp import mlp
from splitjax.optim.clip import clip_by_global_norm
from splitjax.parallel.mesh import make_cloud_mesh
from splitjax.parallel.piped import piped
from splitjax.parallel.spread import spread
from splitjax.runtime.local import Local
from tests.runtime.conftest import IDENTITY, batches, loss, run_all

MESH = "data=2,pipe=2,tensor=2"
TX = optax.chain(clip_by_global_norm(0.1), optax.sgd(0.05, momentum=0.9))
X = batches(1)[0][0]["x"]


def split_of(*places: str, **kwargs) -> Split:
    made = cut(mlp([*4 * [8], 1], **kwargs), after=places)
    return Split(made, (IDENTITY,) * len(places), loss)


def on_mesh(split: Split, *, micro: int):
    mesh = make_cloud_mesh(MESH)
    made = piped(split, mesh)
    return spread(split_learning(made, TX, micro=micro, exact_norm=True), mesh)


def trained(algorithm, split, steps, rows):
    """The first state, the last one, the losses, and what is predicted then."""
    driver = Local(algorithm, jax.random.key(2))
    params, state = jax.jit(split.init)(jax.random.key(1), X)
    first = driver.start(params, state, X)
    start = copy.copy(first.slot)
    run, losses = run_all(driver, first, steps)
    return start, run, losses, driver.predict(run, X[:rows])


def check_run(split: Split, *, micro: int, rows: int = len(X)) -> dict:
    """Trains on one device and as a pipeline; where the latter's arrays are at rest."""
    steps = batches(3, micro=micro)  # the last of three micro-batches is short
    alone = split_learning(split, TX, micro=micro, exact_norm=True)
    _, want, losses, output = trained(alone, split, steps, rows)
    algorithm = on_mesh(split, micro=micro)
    start, run, found, made = trained(algorithm, split, steps, rows)
    # Sums of a few numbers of one order: each is right to some units of 1e-7.
    np.testing.assert_allclose(found, losses, atol=1e-6)
    np.testing.assert_allclose(made, output, atol=1e-6)
    for one, other in ((run.slot, want.slot), (run.edge, want.edge)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other
        )
    parts = [
        {k: a.sharding.shard_shape(a.shape) for k, a in flat(slot).items()}
        for slot in (start, run.slot)
    ]
    assert parts[0] == parts[1]  # they stay where they are
    return parts[0]


def test_the_clouds_half_is_a_pipeline_behind_the_same_edge():
    """Three equal blocks on two places: one is left over, as is the head."""
    parts = check_run(split_of("dense_0"), micro=1)
    kernels = {k: shape for k, shape in parts.items() if k.endswith("dense/kernel")}
    assert len(kernels) == 2 * 4  # themselves, and their momentum
    for name, shape in kernels.items():  # a quarter of (8, 8); of the head's (8, 1)
        assert shape == ((4, 1) if "/head/" in name else (4, 4))


@pytest.mark.slow
def test_steps_of_several_ticks_of_which_one_is_short():
    """And a prediction of rows that "data" does not divide."""
    check_run(split_of("dense_0"), micro=3, rows=7)


@pytest.mark.slow
def test_labels_may_stay_at_the_edge():
    """What a forward pass keeps of a pipeline waits for the gradient that comes."""
    check_run(split_of("dense_0", "dense_3"), micro=1)


def applied(split: Split, *, rows: int = 8, train: bool = True, **kwargs):
    """Traces the cloud's segment in its place on the mesh; nothing is computed."""
    params, state = jax.eval_shape(split.init, jax.random.key(0), X[:rows])
    x = jax.ShapeDtypeStruct((rows, 8), jnp.float32)
    made = piped(split, make_cloud_mesh(MESH), **kwargs)

    def run(params, state, x):
        key = jax.random.key(0)
        return made.cut.segments[1].apply(params, state, x, key=key, train=train)

    return jax.make_jaxpr(run)(params[1], state[1], x)


@pytest.mark.parametrize(
    ("wanted", "rows", "train", "turns"),
    [
        (0, 8, True, 4),  # the most that leave each place of data a row
        (0, 64, True, 8),  # four for each of two places
        (2, 8, True, 2),
        (3, 8, False, 2),  # an evaluation may have other rows
    ],
)
def test_micro_batches_are_as_many_as_asked_or_as_the_rows_allow(
    wanted, rows, train, turns
):
    text = str(
        applied(split_of("dense_0"), rows=rows, train=train, microbatches=wanted)
    )
    assert f"length={turns + 2 - 1}" in text and "ppermute" in text


def test_rows_that_data_does_not_divide_are_scored_without_a_pipeline():
    assert "ppermute" not in str(applied(split_of("dense_0"), rows=7, train=False))
    with pytest.raises(ValueError, match=r"shape \(7, 8\).*data=2: its rows must be"):
        applied(split_of("dense_0"), rows=7)


def test_g_what_cannot_be_a_pipeline():
    with pytest.raises(ValueError, match="microbatches=-1: 1 or more"):
        applied(split_of("dense_0"), microbatches=-1)
    with pytest.raises(ValueError, match="3 microbatches on data=2.*a multiple of 6"):
        applied(split_of("dense_0"), microbatches=3)
    with pytest.raises(ValueError, match=r"no 2 equal blocks .*'dense_3', 'head'"):
        applied(split_of("dense_2"))
    with pytest.raises(ValueError, match="dense_1 has a state, of the statistics"):
        applied(split_of("dense_0", norm=True))
    mesh = make_cloud_mesh("data=8,pipe=1")
    split = split_of("dense_2")
    assert piped(split, mesh) is split


def test_g_what_enters_a_pipeline_has_a_row_for_each_example():
    def wide(name):
        def apply(params, state, x, *, key, train):
            return {**x, "h": x["h"] + x["bias"]}, state, {}

        return Stage(name, lambda key, spec: ({}, {}), apply)

    made = cut([wide(name) for name in "abc"], after="a")
    split = piped(Split(made, (IDENTITY,), loss), make_cloud_mesh(MESH))
    x = spec_of({"h": jnp.ones((8, 4)), "bias": jnp.ones((1, 4))})
    none = {"b": {}, "c": {}}
    with pytest.raises(ValueError, match=r"at 'b', has leaves of \[1, 8\] rows"):
        jax.eval_shape(
            lambda x: split.cut.segments[1].apply(none, none, x, key=None, train=True),
            x,
        )


def test_two_of_the_clouds_segments_draw_other_numbers():
    """Each is a pipeline of two blocks that add noise and do nothing else."""

    def noisy(name):
        def apply(params, state, x, *, key, train):
            return x + jax.random.normal(key, x.shape), state, {}

        return Stage(name, lambda key, spec: ({}, {}), apply)

    made = cut([noisy(name) for name in "abcdef"], after=("a", "c", "d"))
    split = piped(
        Split(made, (IDENTITY,) * 3, loss), make_cloud_mesh(MESH), microbatches=1
    )

    @jax.jit
    def run(x):
        made = []
        for names, segment in (("bc", 1), ("ef", 3)):
            own = dict.fromkeys(names, {})
            apply = split.cut.segments[segment].apply
            made.append(apply(own, own, x, key=jax.random.key(0), train=True)[0])
        return made

    one, other = run(jnp.zeros((4, 3)))
    assert jnp.abs(one - other).min() > 0
