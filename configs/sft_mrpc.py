"""MiniLM on MRPC (paraphrase), cut in layer 1 of 0..5, over 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, and sending it once, are ours
Run: python -m experiments.finetune --config=configs/sft_mrpc.py
Expect: dev accuracy after five epochs (2026-11-24), 101.8x, the edge does 23 % of the
  FLOPs; un-split, at 1e-4, with --config.compare=True
  and --config.seeds="(0,1,2,3,4)":
    seed 0 .8235, un-split .8064; 1 .7721, .8088; 2 .8039, .8039; 3 .8039, .8186;
    4 .8039, .7966: -0.54 ± .94 points
  Rates were chosen on seed 0: split 1e-4 .8064, 2e-4 .8235; un-split 5e-5 .7868, 1e-4
  .8064, and three epochs at 1e-4 .8211. Three epochs of 184 dimensions: .7843, at 1e-4
  and at 2e-4. A frozen float32 edge could send once, too, and only up: the ratio to
  that is 10
Cost: 9 minutes a run on one CPU core, 13 un-split; no code is fit
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
        learning_rate=2e-4,
        unsplit_rate=1e-4,
    )
