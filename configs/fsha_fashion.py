"""FSHA on Fashion-MNIST with small networks (a code of 14x14x8 from 2x2 patches).

Paper: FSHA (arXiv 2012.02670); B-SL (arXiv 2206.04864) for the defenses
Run: python -m experiments.fsha --config=configs/fsha_fashion.py
Expect: see below
Cost: see below
"""

from splitjax.train.hijack_options import Hijack


def get_config() -> Hijack:
    """The options of this run."""
    return Hijack(task="fashion_mnist", side=28)
