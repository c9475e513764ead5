"""MiniLM on SST-2 (sentiment), cut in layer 1 of 0..5, meant for 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, its bits and its fit are ours
Run: python -m experiments.finetune --config=configs/sft_sst2.py
Expect: not measured yet
Cost: not measured yet
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(task="sst2", epochs=1, layer=1)
