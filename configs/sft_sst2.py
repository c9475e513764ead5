"""MiniLM on SST-2 (sentiment), cut in layer 1 of 0..5, over 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, its bits and its fit are ours
Run: python -m experiments.finetune --config=configs/sft_sst2.py
Expect: dev accuracy .8555 at 98.0x, seed 0, the edge does 22 % of the FLOPs;
  un-split .8933: -3.8 points, not good enough (2026-11-24).
  Both arms at 5e-5, which was not tuned. A float32 cut of a frozen edge sends only up
Cost: 15 minutes a run on one shared CPU core, and the code of STS-B (it is kept)
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(task="sst2", epochs=1)
