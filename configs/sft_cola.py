"""MiniLM on CoLA (acceptability), cut in layer 2 of 0..5, over 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, its bits and its fit are ours
Run: python -m experiments.finetune --config=configs/sft_cola.py
Expect: dev Matthews .108 at 97.2x, seed 0; un-split .335 (2026-11-24). Not good enough:
  a frozen edge alone, with float32 after layer 2, gives .183, so here it must learn
Cost: 190 s a run on one CPU core, and 11 minutes once to fit the code (it is kept)
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(task="cola", epochs=3)
