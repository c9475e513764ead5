"""A ResNet-18 on CIFAR-10 at a low rank: in training, and by truncation after it.

Paper: LRPET (arXiv 2204.05566). An earlier table of its authors has 93.27 % for
  ResNet-56 at 56.06M multiply-adds and 93.61 for ResNet-110 at 93.78M, after 400
  epochs; they print no ResNet-18 on CIFAR-10. Ratio, SGD, rate and decay are theirs
Run: python -m experiments.low_rank --config=configs/lrpet_cifar_resnet.py
Expect: 5.31M parameters in the place of 11.17M, and 259.5M multiply-adds a picture in
  the place of 555.4M, for all low ranks of the table. No whole epoch was run yet,
  so there is no accuracy to expect
  (--config.steps=1 prints the costs, too)
Cost: two runs, plain and at a low rank; not measured
"""

from splitjax.train.classify import Classify


def get_config() -> Classify:
    """Their schedule is --config.epochs=400 --config.low_rank_every=0.

    ResNet-56 at their costs: --config.model=resnet56 --config.low_rank=0.57.
    """
    return Classify(
        task="cifar10",
        model="resnet18",
        after=("layer1",),
        low_rank=0.58,
        optimizer="sgd",
        batch_size=128,
        low_rank_every=20,
        epochs=1,
        learning_rate=0.1,
        schedule="cosine",
        warmup=0.05,
        weight_decay=1e-4,
        clip=0.0,
    )
