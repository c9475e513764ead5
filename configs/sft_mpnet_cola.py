"""MPNet on CoLA (acceptability), cut in layer 3 of 0..11, over 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, and sending it once, are ours
Run: python -m experiments.finetune --config=configs/sft_mpnet_cola.py
Expect: dev Matthews, seed 0 (2026-11-30), 98.7x, the edge does 28 % of the FLOPs;
  un-split, at 2e-5, by --config.mode=unsplit --config.send_once=False, so that its
  batches are drawn anew in every epoch
    split .5470  un-split .5497  -0.27 points; .0211 and .0301 before training
  No rate was tuned. Of MPNet's 768 directions 364 keep 97.4 % of the energy
Cost: 39 minutes split and 43 un-split on one CPU core, other programs beside them; no
  code is fit
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(
        task="cola",
        model="mpnet",
        layer=3,
        rank=364,
        forward_bits=4,
        epochs=3,
        send_once=True,
        fit_steps=0,
        learning_rate=5e-5,
        unsplit_rate=2e-5,
    )
