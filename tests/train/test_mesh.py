"""A run whose cloud is on a mesh, by one option."""

import numpy as np
import pytest

from splitjax.storage import log
from splitjax.train.experiment import Experiment
from splitjax.train.finetune import Finetune

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
    [("data=2,pipe=4", "no stack that 'pipe'"), ("tensr=8", "did you mean 'tensor'")],
)
def test_g_a_mesh_that_the_cloud_cannot_use(text, says):
    with pytest.raises(ValueError, match=says):
        Experiment(mesh=text).validate()
