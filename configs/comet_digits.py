"""COMET on digits: two convolutions and a dense layer keep compressed inputs.

Paper: COMET (arXiv 2111.09562): up to 13.5x less memory for activations of ImageNet
  networks, little or no accuracy lost
Run: python -m experiments.residuals --config=configs/comet_digits.py
Expect: test accuracy, mean of seeds 0, 1, 2 (2026-11-29): exact .9833, within bounds
  that adapt .9861, in 8 bits .9852, in 6 bits .9852. At the end the inputs of the three
  layers take 8.1x fewer bytes in a frame, 6 to 13x by layer and seed. In 8 bits the
  backward pass keeps .054 MB in place of 1.003, and the compiled gradient takes .67 MB
  beside its arguments in place of 2.90. Of a run's values 8 bits put .2 %, and 6 bits
  6 %, further off than their bound (the table's "of all"): it was below what they reach
Cost: 1 minute of CPU time
"""

from splitjax.studies.residuals.residuals import Residuals


def get_config() -> Residuals:
    """The options of this run."""
    return Residuals()
