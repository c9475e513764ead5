"""MiniLM on STS-B, cut in layer 2 of 0..5, five epochs of which one is sent: 500x.

Paper: SFT (arXiv 2211.16703); a frozen edge whose codes the cloud keeps is ours
Run: python -m experiments.finetune --config=configs/sft_stsb_once.py
Expect: not measured yet
Cost: not measured yet
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(task="stsb", epochs=5, send_once=True)
