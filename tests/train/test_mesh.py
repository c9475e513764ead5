"""A run whose cloud is on a mesh, by one option."""

import numpy as np
import pytest

from splitjax.core.tree import flat
from splitjax.data.batches import model_inputs
from splitjax.runtime.meter import Meter
from splitjax.storage import log
from splitjax.train.drivers import make_driver
from splitjax.train.experiment import Experiment
from splitjax.train.finetune import Finetune
from splitjax.train.serve import build
from tests.train.test_serve import hello

STEPS = dict(epochs=7, steps=20)


def losses(watched) -> list[float]:
    return [line["loss"] for line in log.read(watched.folder) if "loss" in line]


@pytest.mark.slow
def test_a_mesh_learns_what_one_device_learns_without_a_cut(options, watch, tmp_path):
    """The cut is where the un-split model is cut least: nothing is coded there."""
    runs = {
        "unsplit": dict(mode="unsplit"),
        "mesh": dict(after=("layer_0",), mesh="data=4,tensor=2"),
    }
    made = {
        name: watch(options(**STEPS, **more), tmp_path / name)
        for name, more in runs.items()
    }
    found, want = losses(made["mesh"]), losses(made["unsplit"])
    assert len(found) == 20
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_a_mesh_is_no_part_of_what_a_run_is():
    """So an edge need not know of it, and a checkpoint goes from mesh to mesh."""
    assert Finetune(mesh="data=8").identity(0) == Finetune().identity(0)


def test_a_mesh_takes_no_kernels_that_it_cannot_divide():
    with pytest.raises(ValueError, match="fused='auto' beside mesh='data=8'"):
        Finetune(fused="auto", mesh="data=8").validate()
    Finetune(fused="xla", mesh="data=8").validate()
    Finetune(fused="auto").validate()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data=2,pipe=4", "data=2,pipe=4: its blocks are not in a stack"),
        ("tensr=8", "did you mean 'tensor'"),
    ],
)
def test_g_a_mesh_that_the_cloud_cannot_use(text, says):
    with pytest.raises(ValueError, match=says):
        Experiment(mesh=text).validate()


def test_g_a_run_without_a_cut_has_no_mesh():
    with pytest.raises(ValueError, match="mesh='data=8' with mode='unsplit'"):
        Experiment(mesh="data=8", mode="unsplit").validate()
    whole = Finetune(mesh="data=8").unsplit()
    whole.validate()
    assert (whole.mode, whole.mesh) == ("unsplit", "")


def test_the_clouds_half_lies_on_the_mesh(options):
    """A device's part of a kernel (16, 32) and its moments, however it is made."""
    experiment = options(mesh="data=4,tensor=2", after=("layer_0",))
    slots = [build(experiment)(0, hello(experiment)).make().slot]
    parts = experiment.parts(0)
    driver = make_driver(experiment, 0, parts, Meter(), None)
    first, *_ = next(iter(parts.train.epoch(0, micro=experiment.micro)))
    slots.append(driver.start(parts.params, parts.state, model_inputs(first)).slot)
    for slot in slots:
        found = [
            a for k, a in flat(slot).items() if k.endswith("layer_1/ffn/wi/kernel")
        ]
        assert len(found) >= 3  # the kernel itself, and Adam's two moments
        for leaf in found:
            assert leaf.shape == (16, 32)
            assert {part.data.shape for part in leaf.addressable_shards} == {(16, 16)}
