"""A small CNN on Fashion-MNIST by K-FAC, each party with the factors of its layers.

Paper: DP-KFAC (arXiv 2206.15143); no run of this model is in it. Damping .03 and the
  clip 1e-3 are those of the authors' script for CIFAR-10
Run: python -m experiments.finetune --config=configs/dpkfac_cnn.py
Expect: not measured. (--config.optimizer=sgd --config.learning_rate=0.05 and
  --config.optimizer=adamw --config.learning_rate=1e-3 are what to compare with;
  --config.mode=unsplit has no cut)
Cost: not measured. The wide layer behind the pictures has no factors: its own would
  be 3137 x 3137, and take longer than the rest of the model
"""

from splitjax.train.classify import Classify


def get_config() -> Classify:
    """The options of this run."""
    return Classify(
        task="fashion_mnist",
        model="cnn",
        after=("block1",),
        batch_size=64,
        epochs=1,
        optimizer="kfac",
        learning_rate=0.05,
        schedule="cosine",
        weight_decay=1e-4,
        clip=0.0,
        pad=2,
        kfac_damping=0.03,
        kfac_ema_old=0.9,
        kfac_factor_every=5,
        kfac_inverse_every=25,
        kfac_layers=".*/conv/kernel|head/classifier/kernel",
    )
