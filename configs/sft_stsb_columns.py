"""MiniLM on STS-B, cut in layer 1 of 0..5, over 113x fewer bytes and without a fit.

Paper: SFT (arXiv 2211.16703); the code is a classical transform code: all principal
  directions of the block's input, one step for all, entropy-coded by columns
Run: python -m experiments.finetune --config=configs/sft_stsb_columns.py
Expect: dev Spearman .8860, test .8375 at 113.2x, seed 0 (2026-11-30), before training
  .8584 and .8039; un-split .8945 and .8512 (configs/sft_stsb.py): -0.85 and -1.37
  points. 80 dimensions of 3 bits each, without a fit, are .8776 on dev at 99.9x; with
  a fit .8874 and .8474 at 100.1x. This code has not been fit yet
Cost: 7 minutes a run on one slow CPU core
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(
        task="stsb",
        epochs=1,
        rank=384,
        forward_bits=32,
        forward="ragged() + uniform(1.5) + lossless('columns')",
        fit_steps=0,
    )
