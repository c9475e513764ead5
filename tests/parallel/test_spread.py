import copy
import math

import jax
import numpy as np
import pytest

from splitjax.core.algorithm import At
from splitjax.core.tree import flat
from splitjax.parallel.mesh import make_cloud_mesh
from splitjax.parallel.spread import spread
from tests.runtime.conftest import ROUGH, Here, Model, batches, run_all

STEPS = 20
PLAIN, WIDE = "data=2,tensor=4", "data=4,tensor=2"


def on(model: Model, text: str, **options) -> Model:
    """The model, its cloud on a mesh."""
    made = copy.copy(model)
    made.algorithm = spread(model.algorithm, make_cloud_mesh(text), **options)
    return made


@pytest.fixture(scope="module")
def alone():
    """A model, and what one device makes of it."""
    model = Model(micro=2, clip=0.1)  # an exact norm over both parties
    driver = model.local()
    start = driver.start(model.params, model.state, model.x)
    run, losses = run_all(driver, start, batches(STEPS, micro=2))
    return model, run, losses, driver.predict(run, model.x)


def parts_of(slot) -> dict:
    """The shapes of a device's part of a kernel (8, 8), its moments and its sums."""
    found = {k: a for k, a in flat(slot).items() if k.endswith("dense_1/dense/kernel")}
    assert {name.partition("/")[0] for name in found} == {"params", "opt", "acc"}
    return {name: a.addressable_shards[0].data.shape for name, a in found.items()}


def test_one_process_computes_the_same_on_a_mesh(alone):
    model, run, losses, output = alone
    spread_out = on(model, PLAIN)
    driver = spread_out.local()
    start = driver.start(model.params, model.state, model.x)
    parts = parts_of(start.slot)
    assert set(parts.values()) == {(2, 8)}  # dense_1 by its inputs
    found, made = run_all(driver, start, batches(STEPS, micro=2))
    np.testing.assert_allclose(made, losses, atol=1e-5)
    assert parts_of(found.slot) == parts
    np.testing.assert_allclose(driver.predict(found, model.x), output, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found.slot, run.slot
    )


ZERO = [
    pytest.param(1, False, marks=pytest.mark.slow),
    pytest.param(2, True),
    pytest.param(3, False),
]


@pytest.mark.parametrize(("stage", "offload"), ZERO)
def test_a_stage_of_zero_computes_the_same_from_an_eighth(alone, stage, offload):
    """Of all but the last layer's bias, a single number."""
    model, _, losses, _ = alone
    made = on(model, "data=8", zero=stage, offload=offload)
    driver = made.local()
    run = driver.start(model.params, model.state, model.x)
    check_apart(run.slot, stage, offload)
    run, found = run_all(driver, run, batches(4, micro=2))
    np.testing.assert_allclose(found, losses[:4], rtol=1e-6)
    check_apart(run.slot, stage, offload)


def check_apart(slot, stage: int, offload: bool) -> None:
    for name, first in (("opt", 1), ("acc", 2), ("params", 3)):
        for path, leaf in flat(slot[name]).items():
            held = leaf.addressable_shards[0].data.size
            apart = stage >= first and leaf.size > 1
            assert held * (8 if apart else 1) == leaf.size, path
            kind = "pinned_host" if offload and name == "opt" else "device"
            assert leaf.sharding.memory_kind == kind


def test_gradients_that_wait_for_the_norm_lie_apart(alone):
    """A first hop gives them to the second, which knows the norm over both parties."""
    model = alone[0]
    for stage, parts in ((1, 1), (2, 8)):
        algorithm = on(model, "data=8", zero=stage).algorithm
        edge, shared, slot = algorithm.init(model.params, model.state, model.x)
        [batch, *_] = batches(1, micro=2)[0]
        at = At(model.key, *(np.int32(0),) * 3)
        hop = algorithm.hops(True)[0]
        up = hop.edge(edge, {}, batch, None, at)[2]
        program = jax.jit(hop.cloud).lower(shared, (slot,), ({},), (up,), (at,))
        [live] = program.compile().output_shardings[2]
        shapes = flat(jax.eval_shape(lambda s: s["params"], slot))
        for path, place in flat(live["grads"]).items():
            shape = shapes[path].shape
            size = math.prod(place.shard_shape(shape))
            assert size * (parts if math.prod(shape) > 1 else 1) == math.prod(shape)


def test_g_leaves_that_zero_cannot_part_are_told():
    """Kernels of 9: most of the bytes."""
    model = Model(width=9)
    with pytest.warns(
        UserWarning, match=r"dense_1/dense/kernel .* no axis that data=2"
    ):
        spread(model.algorithm, make_cloud_mesh("data=2,expert=4"), zero=1).init(
            model.params, model.state, model.x
        )


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_a_cloud_goes_from_mesh_to_mesh_behind_the_same_edge(alone, stage, tmp_path):
    """It dies at a checkpoint, and comes back on another mesh."""
    model, _, losses, output = alone
    steps = batches(STEPS, micro=2)
    both = Here(on(model, PLAIN, zero=stage), tmp_path)
    try:
        edge = model.edge(both.dial)
        run = edge.start(model.params, model.state, model.x)
        run, first = run_all(edge, run, steps[:8])
        edge.saving(run)
        edge.saved(run)
        both.model = on(model, WIDE, zero=stage)
        both.crash()
        run, second = run_all(edge, run, steps[8:])
        np.testing.assert_allclose(first + second, losses, atol=1e-5)
        np.testing.assert_allclose(edge.predict(run, model.x), output, atol=1e-5)
        [place] = both.cloud._places
        shape = (4, 2) if stage else (4, 8)
        assert set(parts_of(place.slot.lane.state[1]).values()) == {shape}
        edge.close()
    finally:
        both.close()


def test_rough_codes_cross_as_before():
    """What is sent is the same to the byte in the first step, and codes are no rows."""
    model = Model(link=ROUGH)
    drivers = [model.local(), on(model, PLAIN).local()]
    made = []
    for driver in drivers:
        run = driver.start(model.params, model.state, model.x)
        run, losses = run_all(driver, run, batches(1))
        made.append((losses, driver.meter.totals()))
    assert made[0][1] == made[1][1]
    np.testing.assert_allclose(made[0][0], made[1][0], atol=1e-5)


def test_g_rows_that_data_does_not_divide_are_told():
    """Of 8 rows; the numbers are right all the same."""
    model = Model(micro=2)
    with pytest.warns(UserWarning, match="7 rows are not divided by data=2"):
        on(model, PLAIN).algorithm.init(model.params, model.state, model.x[:7])
    on(model, PLAIN).algorithm.init(model.params, model.state, model.x)
