"""MiniLM on RTE (entailment), cut in layer 1 of 0..5, meant for 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, and sending it once, are ours
Run: python -m experiments.finetune --config=configs/sft_rte.py
Expect: not measured yet
Cost: not measured yet
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(
        task="rte",
        epochs=2,
        rank=124,
        forward_bits=4,
        send_once=True,
        fit_steps=0,
        learning_rate=1e-4,
    )
