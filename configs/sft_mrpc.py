"""MiniLM on MRPC (paraphrase), cut in layer 1 of 0..5, over 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, and sending it once, are ours
Run: python -m experiments.finetune --config=configs/sft_mrpc.py
Expect: dev accuracy .7843 at 99.5x, seed 0 only; un-split .8211: -3.7 points, not good
  enough (2026-11-24). The edge does 23 % of the FLOPs. Both arms at 1e-4; split at 2e-4
  gives .7843, too. A frozen float32 edge could send once, and only up: 17x of that
Cost: 6 minutes a run on one CPU core, 8 un-split; no code is fit
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(
        task="mrpc",
        epochs=3,
        rank=184,
        forward_bits=4,
        send_once=True,
        fit_steps=0,
        learning_rate=1e-4,
    )
