"""MiniLM on STS-B, cut in layer 2 of 0..5, five epochs of which one is sent: 500x.

Paper: SFT (arXiv 2211.16703); a frozen edge whose codes the cloud keeps is ours
Run: python -m experiments.finetune --config=configs/sft_stsb_once.py
Expect: dev Spearman .8883, test .8556 at 500.3x, seed 0; un-split, five epochs too,
  .8931 and .8582: -0.48 and -0.26 points (2026-11-24). The paper has no such run
Cost: 17 minutes a run on one CPU core, and 11 once to fit the code (it is kept)
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(task="stsb", layer=2, epochs=5, send_once=True)
