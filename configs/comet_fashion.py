"""COMET on Fashion-MNIST: two convolutions and a dense layer keep compressed inputs.

Paper: COMET (arXiv 2111.09562): up to 13.5x less memory for activations of ImageNet
  networks, little or no accuracy lost
Run: python -m experiments.residuals --config=configs/comet_fashion.py
Expect: not run; configs/comet_digits.py was
Cost: 5 minutes of CPU time an arm, by the speed of the digits
"""

from splitjax.studies.residuals.residuals import Residuals


def get_config() -> Residuals:
    """One epoch; the paper's interval of the bounds is --config.every=1000."""
    return Residuals(
        task="fashion_mnist", widths=(32, 64), epochs=1, every=100, seeds=(0,)
    )
