"""MiniLM on MRPC (paraphrase), cut in layer 1 of 0..5, over 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, and sending it once, are ours
Run: python -m experiments.finetune --config=configs/sft_mrpc.py
Expect: dev accuracy .8064 at 101.8x, seed 0 only (2026-11-24); the edge does 23 % of
  the FLOPs. Un-split, five epochs at 5e-5, .7868; but three at 1e-4 .8211: -1.5 points
  to the better one, not shown to be good enough. The same with three epochs and 184
  dimensions: .7843, at 1e-4 and at 2e-4. A frozen float32 edge could send once, too,
  and only up: the ratio to that is 10
Cost: 9 minutes a run on one CPU core, 15 un-split; no code is fit
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(
        task="mrpc",
        epochs=5,
        rank=300,
        forward_bits=4,
        send_once=True,
        fit_steps=0,
        learning_rate=1e-4,
        unsplit_rate=5e-5,
    )
