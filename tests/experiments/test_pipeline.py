"""MiniLM, whose cloud half is a pipeline behind an edge in a process of its own."""

import json

import numpy as np
import pytest

from splitjax.storage import log
from splitjax.train import loop
from splitjax.train.finetune import Finetune
from tests.experiments.test_processes import SECONDS, Both

STEPS = 20


class FewScored(Finetune):
    """A run that is scored on the first 64 examples of each split."""

    def _table(self, split, *args, **kwargs):
        table = super()._table(split, *args, **kwargs)
        return table if split == "train" else table.take(64)


@pytest.mark.slow
@pytest.mark.real("minilm", "stsb")
def test_minilm_in_a_pipeline_learns_what_one_device_learns_without_a_cut(tmp_path):
    """On data, pipe and tensor; the edge's process has one device and no mesh."""
    # Dropout would draw other numbers in a pipeline. Texts of 16 tokens at most: two
    # lengths of batches, and so few programs.
    options = dict(task="stsb", after=("embed",), steps=STEPS, dropout=False)
    options |= dict(max_length=16)
    edge = FewScored(**options)
    alone = edge.unsplit()
    both = Both(tmp_path, options, FewScored)
    try:
        mesh = "data=2,pipe=2,tensor=2"
        both.environment["JAX_NUM_CPU_DEVICES"] = "8"
        cloud = both.cloud(f"--config.mesh={mesh}")
        both.address(cloud)
        del both.environment["JAX_NUM_CPU_DEVICES"]
        running = both.edge()
        assert running.wait(SECONDS) == 0, both.tail()
    finally:
        both.end()
    want = loop.train(alone, 0, tmp_path / "alone", progress=False)
    found, losses = (
        [line["loss"] for line in log.read(folder) if "loss" in line]
        for folder in (both.edge_folder, tmp_path / "alone")
    )
    assert len(found) == STEPS and found[-1] < found[0]
    np.testing.assert_allclose(found, losses, atol=1e-5)
    summary = json.loads((both.edge_folder / "summary.json").read_text())
    # Ranks of 64 cosines: two that are alike may change places.
    np.testing.assert_allclose(summary["metric"], want["metric"], atol=1e-3)
