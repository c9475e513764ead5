"""MiniLM on STS-B, cut in layer 2 of 0..5 by a code of its input.

Paper: SFT (arXiv 2211.16703); rank, place and bits are ours
Run: python -m experiments.finetune --config=configs/sft_stsb.py
Expect: to be measured
Cost: to be measured
"""

from splitjax.train.finetune import Finetune


def get_config() -> Finetune:
    """The options of this run."""
    return Finetune(
        task="stsb",
        layer=2,
        bridge="pca",
        rank=32,
        forward_bits=4,
        backward_bits=4,
        epochs=3,
    )
