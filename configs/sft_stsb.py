"""MiniLM on STS-B (similarity), cut in layer 2 of 0..5, over 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, its bits and its fit are ours
Run: python -m experiments.finetune --config=configs/sft_stsb.py
Expect: dev Spearman .8848 ± .0006, test .8524 ± .0005 at 100.1x, seeds 0 to 4, before
  training .8658 and .8277; un-split .8952 ± .0010 and .8544 ± .0023: -1.04 and -0.20
  points (2026-11-24). A float32 cut of a frozen edge sends half: 50x fewer than that
Cost: 150 s a run on one CPU core, and 11 minutes once to fit the code (it is kept)
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(task="stsb", epochs=1)
