"""FSHA on Fashion-MNIST with small networks (a code of 14x14x8 from 2x2 patches).

Paper: FSHA (arXiv 2012.02670); B-SL (arXiv 2206.04864) for the defenses
Run: python -m experiments.fsha --config=configs/fsha_fashion.py
Expect: error over that of the mean picture, seed 0 (2026-11-24): plain .041, leak loss
  .043; to an attacker who knows them signs .15, signs with flips (epsilon 2) .26, flips
  and loss .25; to one who does not .71, 1.1, 1.1. A cloud that sends zeros 1.6. The
  detector flags every attack at batch 10 and no honest cloud
Cost: 15 minutes on one shared CPU core
"""

from splitjax.studies.fsha.options import Hijack


def get_config() -> Hijack:
    """The options of this run."""
    return Hijack(task="fashion_mnist", side=28)
