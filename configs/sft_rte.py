"""MiniLM on RTE (entailment), cut in layer 1 of 0..5, over 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, and sending it once, are ours
Run: python -m experiments.finetune --config=configs/sft_rte.py --config.compare=True
Expect: dev accuracy .5776 at 101.9x, un-split .6029, seed 0 only (2026-11-24): -2.5
  points, 7 of the 277 examples; the edge does 23 % of the FLOPs. MiniLM stays near
  chance here. Rates were not tuned: those of CoLA
Cost: 8 minutes a run on one CPU core, 13 un-split; no code is fit
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
