"""FSHA on 8x8 digits with small networks: what binary codes, noise and a loss are for.

Paper: FSHA (arXiv 2012.02670); B-SL (arXiv 2206.04864) for the defenses
Run: python -m experiments.fsha --config=configs/fsha_digits.py
Expect: error over that of the mean picture, seeds 0, 1, 2 (2026-11-24): plain .04,
  leak loss .05; to an attacker who knows them signs .18, signs with flips (epsilon 2)
  .52, flips and loss .52; to one who does not 1.3, 2.1, 2.4. A cloud that sends zeros
  sees nothing (3.4). The detector flags every attack at batch 10 and no honest cloud
Cost: 10 minutes on one shared CPU core
"""

from splitjax.studies.fsha.options import Hijack


def get_config() -> Hijack:
    """The options of this run."""
    return Hijack(seeds=(0, 1, 2))
