"""MiniLM on RTE (entailment), cut in layer 1 of 0..5, over 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, and sending it once, are ours
Run: python -m experiments.finetune --config=configs/sft_rte.py --config.compare=True
Expect: dev accuracy after five epochs (2026-11-29; seed 0 2026-11-24), 101.9x, the edge
  does 23 % of the FLOPs; un-split, at 5e-5, with --config.compare=True
  and --config.seeds="(0,1,2,3,4)":
    seed 0 .5776, un-split .6029; 1 .5776, .5812; 2 .5776, .6029; 3 .5740, .6101;
    4 .5704, .5776: -1.95 ± .61 points, a point more than it should be
  MiniLM stays near chance here (277 examples, .527 of one class). Rates are those of
  CoLA; on seed 0 the split run at 5e-5 has .5668. The split runs fit the training texts
  sooner: accuracy .92 to .93 in the last 30 steps of metrics.jsonl, un-split .84 to .87
Cost: 8 to 16 minutes a run on one CPU core, 13 to 21 un-split; no code is fit
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(
        task="rte",
        epochs=5,
        rank=300,
        forward_bits=4,
        send_once=True,
        fit_steps=0,
        learning_rate=1e-4,
        unsplit_rate=5e-5,
    )
