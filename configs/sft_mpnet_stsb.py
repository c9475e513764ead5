"""MPNet on STS-B, cut in layer 3 of 0..11, over 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, its bits and its fit are ours
Run: python -m experiments.finetune --config=configs/sft_mpnet_stsb.py
Expect: Spearman, seed 0 (2026-11-29), 100.6x, the edge does 28 % of the FLOPs;
  un-split by --config.mode=unsplit
    dev   split .8994  un-split .9063  -0.69 points; .8658 and .8811 before training
    test  split .8716  un-split .8717  -0.01 points; .8270 and .8342 before training
  Both arms at 5e-5, which was not tuned. The error of distillation on public text rose
  from .145 to .209 (of one batch each): its rate of 1e-3 is MiniLM's, or it is too
  short for twelve layers. A run without the fit was not made
Cost: 28 minutes split and 36 un-split on one slow CPU core, each; 50 more once to fit
  the code, beside other programs (it is kept)
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(
        task="stsb", model="mpnet", layer=3, rank=160, epochs=1, fit_steps=200
    )
