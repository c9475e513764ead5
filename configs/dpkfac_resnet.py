"""K-FAC against SGD and AdamW: a ResNet-20 on CIFAR-10, cut behind its first group.

Paper: DP-KFAC (arXiv 2206.15143); damping .03 is that of the authors' script for
  CIFAR-10, which trains larger ResNets for 100 epochs; the clip 1e-2 is ours
Run: python -m experiments.optimizers --config=configs/dpkfac_resnet.py
Expect: not measured yet
Cost: not measured yet
"""

from splitjax.train.classify import Classify

ARMS = (
    "optimizer=sgd learning_rate=0.03,0.1,0.3",
    "optimizer=adamw learning_rate=1e-3,3e-3,1e-2",
    "optimizer=kfac learning_rate=0.03,0.1,0.3",
)


def get_config() -> Classify:
    """The options of this run; a fifth of the pictures, and 2,000 more to tune on."""
    return Classify(
        task="cifar10",
        model="resnet20",
        after=("layer1",),
        limit=10_000,
        hold_out=2_000,
        eval_limit=2_000,
        batch_size=64,
        epochs=2,
        learning_rate=0.1,
        schedule="cosine",
        weight_decay=1e-4,
        clip=0.0,
        kfac_damping=0.03,
        kfac_ema_old=0.9,
        kfac_clip=1e-2,
        kfac_factor_every=5,
        kfac_inverse_every=25,
    )
