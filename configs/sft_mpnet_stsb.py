"""MPNet on STS-B, cut in layer 5 of 0..11, meant for 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, its bits and its fit are ours
Run: python -m experiments.finetune --config=configs/sft_mpnet_stsb.py
Expect: not measured yet
Cost: not measured yet
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(
        task="stsb", model="mpnet", layer=5, rank=160, epochs=1, fit_steps=200
    )
