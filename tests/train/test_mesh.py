"""A run whose cloud is on a mesh, by one option."""

import dataclasses

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
        "pipe": dict(after=("embed",), mesh="data=2,pipe=2,tensor=2", recompute="full"),
    }
    made = {
        name: watch(options(**STEPS, **more), tmp_path / name)
        for name, more in runs.items()
    }
    want = losses(made["unsplit"])
    assert len(want) == 20
    for name in ("mesh", "pipe"):
        np.testing.assert_allclose(losses(made[name]), want, atol=1e-5)
        assert made[name].summary["metric"] == made["unsplit"].summary["metric"]


@pytest.mark.slow
def test_a_pipeline_goes_on_from_a_checkpoint_of_one_device(
    options, watch, tmp_path, power_cut
):
    """And one device from a pipeline's: both have the same arrays, by name."""
    plain = options(**STEPS, after=("embed",), checkpoint_every=8)
    mesh = dataclasses.replace(plain, mesh="data=2,pipe=2,tensor=2", pipe_micro=2)
    want = losses(watch(plain, tmp_path / "whole"))
    for name, runs in {"there": (plain, mesh), "back": (mesh, plain)}.items():
        with power_cut(10):
            watch(runs[0], tmp_path / name)
        found = losses(watch(runs[1], tmp_path / name))
        np.testing.assert_allclose(found, want, atol=1e-5)


def test_a_mesh_is_no_part_of_what_a_run_is():
    """So an edge need not know of it, and a checkpoint goes from mesh to mesh."""
    assert Finetune(mesh="data=8").identity(0) == Finetune().identity(0)


def test_micro_batches_of_a_pipeline_are_no_part_either():
    one = Finetune(mesh="pipe=8", pipe_micro=4)
    assert one.identity(0) == Finetune().identity(0)
    one.validate()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (dict(pipe_micro=-1), "pipe_micro=-1: 1 or more, or 0"),
        (dict(mesh="data=8", pipe_micro=2), "pipe_micro=2 with mesh='data=8'"),
        (dict(mesh="pipe=8", debug=True), "debug=True with mesh='pipe=8'"),
        (dict(mesh="pipe=8", optimizer="kfac"), "'kfac' with mesh='pipe=8': its stat"),
    ],
)
def test_g_options_that_do_not_go_with_a_pipeline(more, says):
    with pytest.raises(ValueError, match=says):
        Finetune(**more).validate()


def test_a_mesh_takes_no_kernels_that_it_cannot_divide():
    with pytest.raises(ValueError, match="fused='auto' beside mesh='data=8'"):
        Finetune(fused="auto", mesh="data=8").validate()
    Finetune(fused="xla", mesh="data=8").validate()
    Finetune(fused="auto").validate()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data=8,pipe", "'pipe' is not an axis and its size"),
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
