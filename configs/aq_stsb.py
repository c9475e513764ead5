"""MiniLM on STS-B, cut after layer 1: 2 bits of what is new about each text go up.

Paper: AQ-SGD (arXiv 2206.01299): 2 to 4 bits an activation without loss; its tables
  could not be checked
Run: python -m experiments.finetune --config=configs/aq_stsb.py
Expect: no whole run was made yet. With --config.limit=640, seed 0 (2026-11-24), 19.3 MB
  up in the first epoch (whole texts, float32), 1.24 MB in the second: 15.6x fewer; 2.44
  MB down in each. Dev .8671 before training, .8627 and .8637 after epochs 1 and 2; that
  is too few steps to judge. Each end remembers 19 MB, 30 kB a pair of texts
Cost: 2 minutes of CPU time for those; nine times as much an epoch, and 173 MB, in full
"""

from splitjax.train.finetune import Finetune


def get_config() -> Finetune:
    """The edge learns, without dropout: with it no memory would settle.

    The first visit of a text is sent whole, in float32.
    """
    return Finetune(
        task="stsb",
        after=("layer_1",),
        squeeze=False,
        forward="ragged() + delta(quantize(2, axis='channel', power_of_two=True))",
        backward_bits=4,
        edge_dropout=False,
        epochs=4,
    )
