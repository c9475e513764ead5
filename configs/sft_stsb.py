"""MiniLM on STS-B (similarity), cut in layer 1 of 0..5, over 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, its bits and its fit are ours
Run: python -m experiments.finetune --config=configs/sft_stsb.py
Expect: seeds 0 to 4 (2026-11-24), 100.1x, the edge does 22 % of the FLOPs, before
  training dev .8676 and test .8227. Spearman, mean of five, and the mean of the paired
  differences in points with its standard error:
    dev   split .8878  un-split .8952   -0.74 ± .04
      .8874 .8873 .8870 .8890 .8883  and  .8945 .8962 .8940 .8960 .8954
    test  split .8496  un-split .8544   -0.48 ± .07
      .8474 .8493 .8505 .8504 .8506  and  .8512 .8548 .8531 .8565 .8565
  Un-split seeds 1 to 4 are of an earlier commit of that day; seed 0 gave the same
  Cut in layer 2 (the edge does 39 %): dev -1.04 ± .04, test -0.20 ± .10. Both arms at
  5e-5, which was not tuned. A float32 cut of a frozen edge sends only up: 50x of that
Cost: 2 to 3 minutes a run on one CPU core, and 15 once to fit the code (it is kept)
"""

from splitjax.train.finetune import Finetune, narrow

GRID = ("layer=1,2 rank=16,32",)


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(task="stsb", epochs=1)
